"""Noise on the outputs of layers: sites, which losses depend on them, and credit."""

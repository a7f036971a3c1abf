"""Noise on the outputs of layers: where it enters, whose losses tell of it, and gradients from it."""

"""Evaluate a function at low-rank perturbed parameters without forming them."""

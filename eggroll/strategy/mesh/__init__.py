"""Meshes: where parameters and members lie on several devices."""

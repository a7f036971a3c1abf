"""A run's folder: its files and its lock, and what is written down of its settings."""

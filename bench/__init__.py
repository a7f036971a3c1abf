"""Measurements: one script per question. `python -m bench` lists them."""

"""Evaluation: a function of parameters, run for all members of a population."""

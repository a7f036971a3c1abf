"""Answers: prompts, sampling, and generation for all members at once."""

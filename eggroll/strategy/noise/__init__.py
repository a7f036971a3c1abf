"""Noise: from keys over random words to the numbers that members add to their parameters."""

"""The plan: which parameter is perturbed, and how."""

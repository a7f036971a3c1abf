"""The evolution strategy: noise, plan, shaping, estimator, population."""

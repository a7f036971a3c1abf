"""The update: from fitness over weights and gradients to new parameters."""

"""Which outputs of a function depend on which entries of its inputs, by following the data."""

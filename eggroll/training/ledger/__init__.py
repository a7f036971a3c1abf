"""The ledger: a generation as its key and a number per member, and parameters rebuilt from it."""

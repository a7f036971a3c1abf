"""Long runs: the training loop, checkpoints, the ledger, and many processes."""

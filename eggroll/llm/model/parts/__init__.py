"""What a decoder's layers are made of: norms, rotary positions, attention, MLPs and experts."""

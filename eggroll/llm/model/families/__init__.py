"""What Hugging Face's configurations and checkpoints of each family say, in terms of the decoder's features."""

"""Language models: configurations, weights, tokenizers and the decoder."""

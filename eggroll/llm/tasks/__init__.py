"""Tasks for language models: prompts, and a scorer of the finished text."""

"""Ready-made training jobs: the handwritten digits behind `eggroll train`.

See `eggroll.recipes.digits.train`, and `eggroll.recipes.run_folder.load` for the trained model.
"""

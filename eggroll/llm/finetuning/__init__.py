"""Fine-tuning: settings, questions, the generation, evaluation and the job as a whole."""

"""The tiny text-to-image pipelines and their evaluator: data, training, cards."""

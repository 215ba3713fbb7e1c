"""What is learned: a model, its data, its loss."""

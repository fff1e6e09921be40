"""What a model's axes mean: permutation specs, stages and resizing."""

"""What a model is worth: metrics and the suite that a test set allows."""

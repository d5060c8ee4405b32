"""Training code: the shipped pair here; controllers later."""

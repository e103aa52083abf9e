"""Measurements: against other frameworks, against plain PyTorch, and of Motet alone."""

"""Stable training: does the signal pass a network, and weights for which it does."""

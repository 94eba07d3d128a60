"""Shrink: plan under a budget, replace layers, keep what the network does."""

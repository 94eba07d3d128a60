"""Stable training: diagnose, initialise, normalize."""

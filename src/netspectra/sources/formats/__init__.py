"""File formats: one file, one format; each knows bytes and nothing of layers (recipe in CONTRIBUTING.md)."""

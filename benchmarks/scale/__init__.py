"""Checkpoints of real size: written with known spectra, analysed, compared, projected."""

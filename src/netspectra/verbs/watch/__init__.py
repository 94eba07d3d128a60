"""Watch: spectra over training, cheap ones often and costly ones rarely, under a budget of time."""

"""Numerical linear algebra on plain tensors: no modules, no files, nothing that knows what a network is."""

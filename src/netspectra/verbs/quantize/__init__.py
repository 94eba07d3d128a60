"""Quantization: bits and thin corrections for every weight, planned, judged and applied as compression is."""

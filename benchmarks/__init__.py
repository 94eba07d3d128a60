"""Measurements, each a folder with ``run.py``: ``python -m benchmarks`` runs all, ``python -m benchmarks NAME`` one."""

"""``python -m netspectra``."""

from netspectra.faces.cli import main

main()

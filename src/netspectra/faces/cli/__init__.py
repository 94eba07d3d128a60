"""The ``netspectra`` command."""

from netspectra.faces.cli.door import main

__all__ = ["main"]

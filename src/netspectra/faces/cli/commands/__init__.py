"""The commands, one file each: a file registers what it decorates with ``@app.command``."""

from importlib import import_module

from netspectra.faces.cli.app import app

__all__ = ["app"]

# Also the order in which --help shows them.
FILES = (
    "inspect",
    "analyze",
    "compare",
    "drift",
    "pissa",
    "report",
    "watch",
    "geometry",
    "trainability",
    "calibrate",
    "compress",
    "quantize",
    "normalize",
    "distill",
    "interpret",
    "demo",
    "lists",
)

for file in FILES:
    import_module(f"{__name__}.{file}")

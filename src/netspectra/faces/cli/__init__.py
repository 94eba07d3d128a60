"""The ``netspectra`` command."""

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line; streams and signals are seen to before anything large is imported."""
    import os

    from netspectra.faces.cli.signals import INTERRUPTED, watch
    from netspectra.faces.cli.streams import data_only

    try:
        data_only()
        watch()
        from netspectra.faces.cli.door import main
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    main()

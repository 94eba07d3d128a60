"""The way out of every command: one line on stderr and an exit code, whatever happened inside."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from typing import NoReturn, cast

import typer

from netspectra.errors import EnvironmentFailure, NetspectraError, lacks_memory
from netspectra.faces.cli.signals import INTERRUPTED, TERMINATED
from netspectra.faces.cli.streams import drain
from netspectra.version import __version__

__all__ = ["main"]

# The class of every usage error, which typer does not export under a name of its own.
USAGE = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
ENVIRONMENT, OWN_BUG = 4, 1


def main() -> NoReturn:
    """Run the command line and leave with its exit code.

    0 done; 2 bad usage or refused input; 3 a condition the user asked to fail on; 4 the machine could not (disk,
    memory, permission); 130 and 143 signals; 1 only for a bug of ours, with the traceback in a file.
    """
    code = run()
    failed = drain()
    if failed is not None and code == 0 and not isinstance(failed, BrokenPipeError):
        _say(f"standard output: {failed.strerror}")
        code = ENVIRONMENT
    if code in (INTERRUPTED, TERMINATED):
        os._exit(code)  # do not wait for the weights that worker threads still hold
    raise SystemExit(code)


def run() -> int:
    """Run the command line in ``sys.argv`` and give the exit code; never raises."""
    try:
        from netspectra.faces.cli.commands import app

        _room()
        code = app(prog_name="netspectra", standalone_mode=False) or 0
        if code == INTERRUPTED:
            _say("interrupted")
        return code
    except USAGE as wrong:
        _say(f"{wrong.format_message()} (netspectra --help, or netspectra COMMAND --help)")
        return wrong.exit_code
    except SystemExit as leaving:
        # 1 is what rich leaves with when nobody reads on
        return leaving.code if isinstance(leaving.code, int) and leaving.code != OWN_BUG else 0
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except NetspectraError as wrong:
        _say(str(wrong))
        return wrong.exit_code
    except MemoryError:
        return _out_of_memory()
    except BrokenPipeError:
        return 0
    except OSError as wrong:
        _say(f"{wrong.filename or 'input or output'}: {wrong.strerror or wrong}")
        return ENVIRONMENT
    except Exception as wrong:  # noqa: BLE001 - the last door: a bug of ours goes to a file, never to the terminal
        if lacks_memory(wrong):
            return _out_of_memory()
        _say(f"a bug of netspectra's own, please report it. Details: {_written(traceback.format_exc())}")
        return OWN_BUG


def _room() -> None:
    """Refuse to begin where not even the libraries fit: some of them end the process on the spot."""
    from netspectra.run.cost import BASE, memory

    if memory() < BASE:
        raise EnvironmentFailure(
            f"this process is limited to {memory() / 1e9:.1f} GB of memory, torch alone needs {BASE / 1e9:.1f}. "
            "Raise the limit (ulimit -v, or the container's)"
        )


def _out_of_memory() -> int:
    _say("out of memory. Use --workers 1, --exclude the largest weights, or a machine with more")
    return ENVIRONMENT


def _say(line: str) -> None:
    from netspectra.sources.guard import printable

    shown = printable(" ".join(line.split()), limit=2000)
    with contextlib.suppress(OSError):  # nobody to tell
        print(f"error: {shown}", file=sys.stderr, flush=True)


def _written(text: str) -> str:
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="netspectra-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"netspectra {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n{text}")
            return file.name
    except OSError:
        return f"(no log could be written) {text.strip().splitlines()[-1]}"

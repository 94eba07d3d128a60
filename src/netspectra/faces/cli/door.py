"""The way out of every command: one line on stderr and an exit code, whatever happened inside."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import traceback
from types import FrameType
from typing import NoReturn, cast

import typer

from netspectra.errors import NetspectraError
from netspectra.version import __version__

__all__ = ["main"]

# The class of every usage error, which typer does not export under a name of its own.
USAGE = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])
ENVIRONMENT, INTERRUPTED, TERMINATED, OWN_BUG = 4, 130, 143, 1


def main() -> NoReturn:
    """Run the command line and leave with its exit code.

    0 done; 2 bad usage or refused input; 3 a condition the user asked to fail on; 4 the machine could not (disk,
    memory, permission); 130 and 143 signals; 1 only for a bug of ours, with the traceback in a file.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminated)
    code = run()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    if code in (INTERRUPTED, TERMINATED):
        os._exit(code)  # do not wait for the weights that worker threads still hold
    try:
        sys.stdout.close()
    except BrokenPipeError:
        os._exit(code)
    raise SystemExit(code)


def run() -> int:
    """Run the command line in ``sys.argv`` and give the exit code; never raises."""
    try:
        from netspectra.faces.cli.commands import app

        code = app(prog_name="netspectra", standalone_mode=False) or 0
        if code == INTERRUPTED:
            _say("interrupted")
        return code
    except USAGE as wrong:
        _say(f"{wrong.format_message()} (netspectra --help, or netspectra COMMAND --help)")
        return wrong.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except NetspectraError as wrong:
        _say(str(wrong))
        return wrong.exit_code
    except MemoryError:
        _say("out of memory. Use --workers 1, --exclude the largest weights, or a machine with more")
        return ENVIRONMENT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is written at exit either
        return 0
    except OSError as wrong:
        _say(f"{wrong.filename or 'input or output'}: {wrong.strerror or wrong}")
        return ENVIRONMENT
    except Exception:  # noqa: BLE001 - the last door: a bug of ours goes to a file, never to the terminal
        _say(f"a bug of netspectra's own, please report it. Details: {_written(traceback.format_exc())}")
        return OWN_BUG


def _say(line: str) -> None:
    shown = " ".join(line.split())
    print(f"error: {shown}", file=sys.stderr)


def _written(text: str) -> str:
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="netspectra-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"netspectra {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n{text}")
            return file.name
    except OSError:
        return f"(no log could be written) {text.strip().splitlines()[-1]}"


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)

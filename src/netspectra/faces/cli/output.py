"""Where results go: checked before the work, written whole or not at all, standard output for ``-``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from netspectra.errors import EnvironmentFailure, InputRefused

Out = str | None  # a file, or - for standard output


def writable(*targets: Path | str | None) -> None:
    """Refuse before hours of work what could not be written after them."""
    import os

    if [str(target) for target in targets].count("-") > 1:
        raise InputRefused("only one of --html, --json and --csv can go to standard output")
    for target in targets:
        if target is None or str(target) == "-":
            continue
        path = Path(target)
        folder = path.parent
        if path.is_dir():
            raise InputRefused(f"{path}: is a folder, name a file in it")
        if not folder.is_dir():
            raise InputRefused(f"{path}: the folder {folder} does not exist")
        if not os.access(folder, os.W_OK):
            raise EnvironmentFailure(f"{path}: the folder {folder} is not writable")


def export(found: Any, html: Out, json_out: Out, csv: Out = None, *page: Any) -> None:
    """Write the exports that were asked for; ``page`` is what ``to_html`` takes besides."""
    if html is not None:
        write(html, found.to_html(*page))
    if json_out is not None:
        write(json_out, found.to_json())
    if csv is not None:
        write(csv, found.to_csv())


def tell_files(*targets: Path | str | None) -> None:
    """Say on stderr what was written, after what stands on stdout."""
    sys.stdout.flush()
    for target in targets:
        if target is not None and target != "-":
            print(f"wrote {target}", file=sys.stderr)


def write(target: str, text: str) -> None:
    """Write the whole text to a file, or to standard output."""
    from netspectra.written import write_atomically

    if target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(target, text)


def write_json(target: str, data: object) -> None:
    """Write data as strict JSON."""
    from netspectra.written import strict_json

    write(target, strict_json(data, indent=1))

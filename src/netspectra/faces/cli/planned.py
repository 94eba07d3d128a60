"""What the commands that plan share: a live model with its calibration batches, progress, and the plan shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.faces.cli.output import tell_files, write

if TYPE_CHECKING:
    import torch

    from netspectra.plan import Plan
    from netspectra.weight import Source

__all__ = ["opened", "progress_on_stderr", "told"]


def opened(
    path: str, make: str | None, calibration: Path | None, samples: int, tokens: int, size: int
) -> tuple[Source, torch.nn.Module, list[Any] | None]:
    """The checkpoint, its live model, and calibration batches for it."""
    from netspectra.live.build import build, factory
    from netspectra.live.samples import is_tensors, read_samples, tensor_batches, text_batches, tokenizer
    from netspectra.sources import open as open_source

    source = open_source(path)
    if calibration is None:
        return source, build(source, factory(make) if make else None), None
    if is_tensors(calibration):
        batches = tensor_batches(open_source(calibration), size=size)[: max(1, samples // size)]
        return source, build(source, factory(make) if make else None), batches
    texts, words = _spread(read_samples(calibration), samples), tokenizer(source)
    network = build(source, factory(make) if make else None)
    texts.sort(key=len)  # alike lengths in a batch: less padding
    return source, network, text_batches(texts, words, network, size=size, longest=tokens)


def _spread(texts: list[str], count: int) -> list[str]:
    """At most ``count`` of them, evenly from the whole file."""
    return texts if len(texts) <= count else [texts[i * len(texts) // count] for i in range(count)]


@contextmanager
def progress_on_stderr(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Draw what is being done on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=share)

        yield tell


def told(made: Plan, html: str | None, json_out: str | None, plan: Path | None, quiet: bool) -> None:
    """Write and show what was planned."""
    if html is not None:
        write(html, made.to_html())
    if json_out is not None:
        write(json_out, made.to_json())
    if not quiet and "-" not in (html, json_out):
        _show(made)
    tell_files(html, json_out, plan)


def _show(plan: Plan) -> None:
    """The plan as a table, and what was measured, on stdout."""
    from netspectra.faces.cli.table import show_plan

    show_plan(plan)

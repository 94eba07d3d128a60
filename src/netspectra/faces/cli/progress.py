"""Progress on standard error: by operations, not by weights, so that the time left can be believed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from netspectra.faces.cli.table import middle
from netspectra.run.cost import flops
from netspectra.weight import Weight

__all__ = ["following"]


@contextmanager
def following(weights: Sequence[Weight], *, quiet: bool) -> Iterator[Callable[[Weight | None], None]]:
    """Give the function to call with each finished weight; it draws only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda weight: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[done]}/{task.fields[count]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(map(flops, weights)), done=0, count=len(weights))
        finished = 0

        def advance(weight: Weight | None) -> None:
            nonlocal finished
            finished += 1
            if weight is not None:
                bar.update(task, advance=flops(weight), done=finished, description=escape(middle(weight.name, 40)))

        yield advance

"""Progress on standard error: by operations, not by weights, so that the time left can be believed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from netspectra.faces.cli.table import middle
from netspectra.run.cost import flops
from netspectra.weight import Weight

__all__ = ["following", "sharing"]


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


@contextmanager
def sharing(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
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

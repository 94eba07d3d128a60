"""What the commands that plan share: a live model with its calibration batches, and the plan shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from netspectra.doors.calibration import opened
from netspectra.errors import InputRefused
from netspectra.faces.cli.engine import engine as chosen
from netspectra.faces.cli.engine import kept
from netspectra.faces.cli.output import export, tell_files
from netspectra.faces.cli.progress import sharing

if TYPE_CHECKING:
    from netspectra.live.saved import Saved
    from netspectra.plan import Plan
    from netspectra.run import Run
    from netspectra.verbs.compress.calibrate import Calibration
    from netspectra.verbs.compress.workshop import Progress, Workshop

__all__ = ["in_one_process", "must_land", "opened", "remembering", "saved_moments", "streamed", "told", "unwritten"]


def unwritten(file: Path | None) -> Path | None:
    """Of a file that is read where it exists, else written: where to write; None where there is nothing to."""
    return None if file is None or file.exists() else file


def must_land(out: Path | None, plan: Path | None, plan_only: bool, html: str | None, json_out: str | None) -> None:
    """Refuse work whose result would go nowhere.

    Raises:
        InputRefused: no folder for the model, or no place for the plan where that is all.
    """
    if not plan_only and out is None:
        raise InputRefused("name a folder for the model, -o DIR, or stop at the plan with --plan-only --plan FILE")
    if plan_only and plan is None and json_out is None and html is None:
        raise InputRefused("--plan-only needs a place for the plan: --plan FILE, --json or --html")


def remembering(moments: Path | None, plan: Callable[[Calibration | None], tuple[Plan, Workshop]]) -> Plan:
    """Plan with the moments that a file holds; where there is none yet, keep in it what was measured."""
    from netspectra.verbs.compress.calibrate import Calibration

    known = Calibration.load(moments) if moments is not None and moments.exists() else None
    made, shop = plan(known)
    if moments is not None and known is None and shop.calibration is not None:
        shop.calibration.save(moments)
    return made


def saved_moments(moments: Path | None) -> Calibration | None:
    """What a stream knows of the inputs: moments that are there already.

    Raises:
        InputRefused: there is no such file.
    """
    from netspectra.verbs.compress.calibrate import Calibration

    if moments is not None and not moments.exists():
        raise InputRefused(f"{moments}: no such file; with --stream moments are read, netspectra calibrate writes them")
    return Calibration.load(moments) if moments is not None else None


def in_one_process(engine: str, address: str | None) -> None:
    """Refuse an engine for a live model."""
    if engine != "local" or address is not None:
        raise InputRefused(
            "--engine goes with --stream: a live model is planned in one process. Its moments can be taken on a "
            "cluster: netspectra calibrate --engine, then --moments here"
        )


def streamed(
    act: Callable[[Run, Progress], tuple[Plan, Saved | None]],
    engine: str,
    address: str | None,
    plan: Path | None,
    html: str | None,
    json_out: str | None,
    quiet: bool,
) -> None:
    """Plan and write with no live model, by the engine that is asked for; ``plan``: where to keep what was decided."""
    run = chosen(engine, address, workers=0, quiet=quiet)
    with kept(run), sharing(quiet=quiet) as progress:
        made, saved = act(run, progress)
    if plan is not None:
        made.save(plan)
    if saved is not None:
        made.finish["saved"] = saved.to_dict()
        print(saved, *saved.notes, sep="\n  ", file=sys.stderr)
    told(made, html, json_out, plan, quiet)


def told(made: Plan, html: str | None, json_out: str | None, plan: Path | None, quiet: bool) -> None:
    """Write and show what was planned."""
    export(made, html, json_out)
    if not quiet and "-" not in (html, json_out):
        _show(made)
    tell_files(html, json_out, plan)


def _show(plan: Plan) -> None:
    """The plan as a table, and what was measured, on stdout."""
    from netspectra.faces.cli.table import show_plan

    show_plan(plan)

"""What the commands that plan share: a live model with its calibration batches, and the plan shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from netspectra.doors.calibration import opened
from netspectra.errors import InputRefused
from netspectra.faces.cli.output import export, tell_files

if TYPE_CHECKING:
    from netspectra.plan import Plan
    from netspectra.verbs.compress.calibrate import Calibration
    from netspectra.verbs.compress.workshop import Workshop

__all__ = ["must_land", "opened", "remembering", "told"]


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

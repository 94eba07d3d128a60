"""Give every weight the bits it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from netspectra.plan import Plan
    from netspectra.verbs.quantize.options import QuantizeOptions

__all__ = ["quantize"]


def quantize(
    model: torch.nn.Module,
    *,
    bits: float | None = None,
    calibration: Any = None,
    plan: Plan | str | Path | None = None,
    options: QuantizeOptions | None = None,
    progress: Callable[[str, float], None] | None = None,
    **wanted: Any,
) -> Plan:
    """Plan how many bits each weight gets, and where a thin correction pays; `Plan.apply` then does it.

    Bits and ranks are chosen by the loss they are predicted to cost, tr(G E A E^T) of the rounding error E under the
    second moments A of what enters and G of the gradient at what leaves each layer, and judged on held-out samples
    against the same bits everywhere. The model is not changed before ``plan.apply(model)``.

    Args:
        model: any module.
        bits: average bits of a selected weight, scales, zero points and corrections included; 4.25 where no budget
            is given.
        calibration: what the model is called with: batches, a DataLoader, a function that gives them; or the path of
            moments that were saved; None: the same bits everywhere, rounded to the nearest.
        plan: a plan or its file, perhaps edited, to be fitted instead of making a new one; with its groups, zero
            points, rounding and ranks where no others are asked for.
        options: `netspectra.verbs.quantize.options.QuantizeOptions`, where all can be said.
        progress: called with what is being done and its share, 0 ... 1.
        wanted: fields of the options by name: ``group=32``, ``symmetric=True``, ``ranks=(0,)``, ...

    Raises:
        InputRefused: the budget cannot be met, nothing is selected, options contradict each other.

    References: Frantar et al. 2022 (GPTQ, arXiv:2210.17323); Zhang et al. 2024 (QERA, arXiv:2410.06040).

    >>> import torch, netspectra as ns
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    >>> plan = ns.quantize(model, bits=4, calibration=[torch.randn(256, 64)])
    >>> plan.totals["selected_after"].bytes * 8 <= 4 * (64 * 128 + 128 * 10) + 32 * (128 + 10)
    True
    >>> _ = plan.apply(model)
    """
    from dataclasses import replace

    from netspectra.plan import Plan
    from netspectra.verbs.compress.calibrate import Calibration
    from netspectra.verbs.quantize.options import QuantizeOptions
    from netspectra.verbs.quantize.planning import quantize

    if bits is not None:
        wanted["bits"] = bits
    known = Calibration.load(calibration) if isinstance(calibration, str | Path) else None
    given = Plan.load(plan) if isinstance(plan, str | Path) else plan
    asked = replace(options or QuantizeOptions(), **wanted)
    made, _ = quantize(
        model,
        asked if given is None else asked.following(given.options),
        None if known is not None else calibration,
        calibration=known,
        plan=given,
        progress=progress or (lambda what, share: None),
    )
    return made

"""Watch: spectra over training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from netspectra.sources import open as open_source
from netspectra.verbs.watch.alarms import Alarm
from netspectra.verbs.watch.book import Sink
from netspectra.verbs.watch.monitor import Watcher
from netspectra.verbs.watch.options import MonitorOptions

__all__ = ["Monitor"]


class Monitor(Watcher):
    """Watch the singular values of a model's weights while it trains, on a budget of its time.

    Every 10 steps the norms of weights and gradients and sigma_1 of every weight (one warm power iteration), every 50
    the 8 leading singular values, now and then every singular value with all metrics. Looks are paid from a share of
    the training's time, 1 % by default: where they would cost more they are spaced out, and the record says so. What
    is measured never changes the training: no random number is drawn, nothing of the model is written or hooked.

    Alarms (``blow-up``, ``rank-collapse``, ``dead-layer``, ``signal-lost``, ``not-finite``, ``stale-statistics``,
    ``attention-logits``) come with their evidence, are kept in the run file, and call ``on_alarm`` or, on request, end
    the training. The run file survives a kill at any moment; ``netspectra report RUN --html`` draws it, also meanwhile.

    Under torch.distributed (DDP) make one in every process: layers are shared out, the first process writes.

    Args:
        model: any module.
        run: the run file to write; None keeps none.
        every: steps between two cheap looks.
        sinks: functions of (step, numbers by name), such as those of `netspectra.faces.sinks`.
        optimizer: followed, a step each time it makes one; without it call ``monitor.step()`` after each.
        on_alarm: called with each `Alarm`.
        resume: go on in a run file that is there.
        options: `netspectra.verbs.watch.options.MonitorOptions`, where all can be said.
        wanted: fields of the options by name: ``leading_every=100``, ``include="*attn*"``, ``raise_on=("error",)``.

    Raises:
        InputRefused: nothing to watch, sharded parameters, a run file that exists or is another job's.
        AlarmRaised: an alarm of ``raise_on``.

    Cost: a cheap look 4 m n operations a weight and its norms; leading values 16 times that.

    >>> import torch, netspectra as ns
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> with ns.Monitor(model, optimizer=optimizer) as monitor:
    ...     for _ in range(30):
    ...         optimizer.zero_grad()
    ...         model(torch.randn(32, 8)).square().mean().backward()
    ...         optimizer.step()
    >>> monitor.steps, monitor.alarms
    (30, [])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        run: str | Path | None = None,
        *,
        every: int | None = None,
        sinks: Sequence[Sink] = (),
        optimizer: torch.optim.Optimizer | None = None,
        on_alarm: Callable[[Alarm], None] | None = None,
        resume: bool = False,
        options: MonitorOptions | None = None,
        **wanted: Any,
    ) -> None:
        """Prepare; the first look is taken when the block is entered."""
        from dataclasses import replace

        if every is not None:
            wanted["every"] = every
        for name in ("include", "exclude", "raise_on", "metrics"):
            if isinstance(wanted.get(name), str):
                wanted[name] = (wanted[name],)
            elif wanted.get(name) is not None:
                wanted[name] = tuple(wanted[name])
        super().__init__(
            model,
            open_source(model),
            replace(options or MonitorOptions(), **wanted),
            run=run,
            resume=resume,
            optimizer=optimizer,
            sinks=sinks,
            on_alarm=on_alarm,
        )

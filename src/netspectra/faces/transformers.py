"""A monitor as a callback of the Trainer of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from netspectra.doors.monitoring import Monitor

__all__ = ["MonitorCallback"]


class MonitorCallback(TrainerCallback):
    """Watch a training of transformers: ``Trainer(..., callbacks=[MonitorCallback("train.run")])``.

    Looks are taken after the optimizer's step, while the gradients are still there. What the Trainer logs, the loss and
    the learning rate, is kept beside them. Where the training goes on from a checkpoint, so does the run file.

    Args:
        run: the run file to write.
        wanted: as for `netspectra.Monitor`.
    """

    def __init__(self, run: str | Path | None = None, **wanted: Any) -> None:
        """Prepare."""
        self.run, self.wanted = run, wanted
        self.monitor: Monitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Begin; an earlier training that failed is closed first."""
        if self.monitor is not None:
            self.monitor.finish(spectra=False)
        self.monitor = Monitor(model, self.run, **{"resume": state.global_step > 0, **self.wanted})
        self.monitor.start(state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One step; the Trainer counts it only afterwards."""
        if self.monitor is not None:
            self.monitor.step(state.global_step + 1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Keep what is logged while the training runs."""
        if self.monitor is not None:
            names = ("loss", "learning_rate", "grad_norm", "eval_loss")
            self.monitor.note(**{name: logs[name] for name in names if isinstance((logs or {}).get(name), int | float)})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End."""
        if self.monitor is not None:
            self.monitor.finish()

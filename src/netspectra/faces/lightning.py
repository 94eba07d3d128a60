"""A monitor as a callback of Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from netspectra.doors.monitoring import Monitor

__all__ = ["MonitorCallback"]


class MonitorCallback(Callback):
    """Watch a training of Lightning: ``Trainer(callbacks=[MonitorCallback("train.run")])``.

    The first optimizer's steps are followed; the loss of each batch is kept beside the looks. Where the training goes
    on from a checkpoint, so does the run file.

    Args:
        run: the run file to write.
        optimizer: position of the optimizer to follow.
        wanted: as for `netspectra.Monitor`.
    """

    def __init__(self, run: str | Path | None = None, *, optimizer: int = 0, **wanted: Any) -> None:
        """Prepare."""
        super().__init__()
        self.run, self.wanted, self.place = run, wanted, optimizer
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        wanted = {"resume": trainer.global_step > 0, **self.wanted}
        self.monitor = Monitor(pl_module, self.run, optimizer=trainer.optimizers[self.place], **wanted)
        self.monitor.start(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.monitor is not None and loss is not None:
            self.monitor.note(loss=loss)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        if self.monitor is not None:
            self.monitor.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End in haste."""
        if self.monitor is not None:
            self.monitor.finish(spectra=False)

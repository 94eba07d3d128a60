"""Where a monitor's numbers can go besides its run file: TensorBoard, Weights & Biases, MLflow, trackio.

Each is a function of (step, numbers by name), made by the function of its name; its package is imported then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netspectra.errors import InputRefused

__all__ = ["mlflow", "tensorboard", "trackio", "wandb"]

PREFIX = "netspectra"


class _TensorBoard:
    def __init__(self, writer: Any, own: bool) -> None:
        self.writer, self.own = writer, own

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(f"{PREFIX}/{name}", value, step)

    def close(self) -> None:
        if self.own:
            self.writer.close()
        else:
            self.writer.flush()


def tensorboard(where: str | Path | Any) -> _TensorBoard:
    """Scalars for TensorBoard, ``netspectra/sigma_1/NAME`` and so on.

    Args:
        where: a folder for event files, or a ``SummaryWriter`` that is used already.
    """
    if not isinstance(where, str | Path):
        return _TensorBoard(where, own=False)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    return _TensorBoard(SummaryWriter(str(where)), own=True)


class _WandB:
    def __init__(self, run: Any) -> None:
        self.run = run
        run.define_metric(f"{PREFIX}/step")
        run.define_metric(f"{PREFIX}/*", step_metric=f"{PREFIX}/step")

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log({f"{PREFIX}/step": step, **{f"{PREFIX}/{name}": value for name, value in numbers.items()}})


def wandb(run: Any = None) -> _WandB:
    """Scalars for Weights & Biases, against a step of their own, so that other logging keeps its.

    Args:
        run: what ``wandb.init`` gave; by default the run that is active.
    """
    if run is None:
        try:
            import wandb as package  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise _missing("wandb") from None
        run = package.run
        if run is None:
            raise InputRefused("no active run of wandb: call wandb.init first, or give the run")
    return _WandB(run)


class _MLflow:
    most = 1000  # metrics of one call

    def __init__(self, client: Any, entity: Any, run: str) -> None:
        self.client, self.entity, self.run = client, entity, run

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        # brackets and the like are refused by MLflow
        named = [(f"{PREFIX}/{re.sub(r'[^0-9A-Za-z_.:/ -]', '_', name)}", value) for name, value in numbers.items()]
        metrics = [self.entity(name, value, now, step) for name, value in named]
        for begin in range(0, len(metrics), self.most):
            self.client.log_batch(self.run, metrics=metrics[begin : begin + self.most])


def mlflow(run: str | None = None, *, uri: str | None = None) -> _MLflow:
    """Metrics for MLflow.

    Args:
        run: id of a run; by default the active one.
        uri: of the tracking server or store; by default MLflow's own setting.
    """
    try:
        import mlflow as package  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("mlflow") from None
    if run is None:
        active = package.active_run()
        if active is None:
            raise InputRefused("no active run of MLflow: call mlflow.start_run first, or give the run's id")
        run = active.info.run_id
    return _MLflow(package.MlflowClient(uri), Metric, str(run))


class _Trackio:
    def __init__(self, run: Any) -> None:
        self.run = run

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log({f"{PREFIX}/{name}": value for name, value in numbers.items()}, step=step)


def trackio(run: Any) -> _Trackio:
    """Metrics for trackio.

    Args:
        run: what ``trackio.init`` gave.
    """
    return _Trackio(run)


def _missing(package: str) -> InputRefused:
    return InputRefused(f"this sink needs {package}: pip install {package}")

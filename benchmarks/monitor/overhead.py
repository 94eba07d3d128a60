"""What a monitor costs beside the training, and what others cost that look as often."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.results import table
from netspectra import Monitor
from netspectra.linalg.threads import threads

STEPS = 10  # of a turn: one look of each that looks


class Reader(nn.Module):
    """A small language model: 4 blocks of width 192 on 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 192)
        layer = nn.TransformerEncoderLayer(192, 6, 768, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(192, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x)))


Follow = Callable[[int, torch.Tensor], None]
Peer = Callable[[nn.Module, torch.optim.Optimizer, Path], Any]


@contextmanager
def nothing(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Follow]:
    yield lambda step, loss: None


@dataclass
class Silent:
    """Does nothing after a step: the monitor follows the optimizer."""

    monitor: Monitor

    def __call__(self, step: int, loss: torch.Tensor) -> None:
        pass


def monitored(**options: Any) -> Peer:
    @contextmanager
    def peer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Follow]:
        with Monitor(model, folder / "a.run", optimizer=optimizer, **options) as monitor:
            yield Silent(monitor)

    return peer


@contextmanager
def histograms(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Follow]:
    """TensorBoard histograms of every parameter and gradient, every 10 steps."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def follow(step: int, loss: torch.Tensor) -> None:
        if step % 10 == 0:
            for name, parameter in model.named_parameters():
                writer.add_histogram(name, parameter.detach(), step)
                if parameter.grad is not None:
                    writer.add_histogram(f"{name}.grad", parameter.grad, step)

    yield follow
    writer.close()


@contextmanager
def watched(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Iterator[Follow]:
    """``wandb.watch(model, log="all", log_freq=10)``, offline; its helper process is not counted."""
    import wandb

    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder))
    logging.getLogger("wandb").setLevel(logging.ERROR)
    run = wandb.init(project="overhead", dir=str(folder), mode="offline")
    wandb.watch(model, log="all", log_freq=10)
    yield lambda step, loss: run.log({"loss": float(loss)}) if step % 10 == 0 else None
    run.finish()


PEERS: dict[str, tuple[str, Peer]] = {
    "none": ("no monitor", nothing),
    "default": ("Monitor, default", monitored()),
    "detailed": (
        "Monitor, detailed: budget 3 %, updates, spectra of gradients",
        monitored(budget=0.03, updates=True, gradients=True),
    ),
    "wandb": ("wandb.watch, all, every 10 steps, offline", watched),
    "tensorboard": ("TensorBoard histograms, every 10 steps", histograms),
}


def study(quick: bool) -> dict[str, Any]:
    rounds = 15 if quick else 80
    found: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    looks: dict[str, Any] = {}
    missing: list[str] = []
    with contextlib.ExitStack() as stack, threads(1):
        peers: dict[str, Callable[[int], None]] = {}
        follows: dict[str, Any] = {}
        for name, (_, peer) in PEERS.items():
            try:
                peers[name], follows[name] = prepared(stack, peer)
            except ImportError as absent:
                missing.append(f"{name}: {absent.name} is not installed")
        for peer in peers.values():
            peer(STEPS)  # uncounted
        order = list(peers)
        for _ in range(rounds):
            order.append(order.pop(0))  # so that none always follows the same
            for name in order:
                begun = time.process_time()
                peers[name](STEPS)
                found.setdefault(name, []).append((time.process_time() - begun) / STEPS)
        for name in ("default", "detailed"):
            shares[name] = follows[name].monitor.overhead
            looks[name] = follows[name].monitor.state()["lanes"]
    return {"seconds a step": found, "own share": shares, "looks": looks, "missing": missing, "steps": STEPS}


def prepared(stack: contextlib.ExitStack, peer: Peer) -> tuple[Callable[[int], None], Follow]:
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    follow = stack.enter_context(peer(model, optimizer, folder))
    generator = torch.Generator().manual_seed(0)
    done = 0

    def steps(count: int) -> None:
        nonlocal done
        for _ in range(count):
            x = torch.randint(256, (8, 65), generator=generator)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            done += 1
            follow(done, loss.detach())

    return steps, follow


def more(times: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """How much more time than the base, and half of a 95 % interval, from the differences round by round."""
    differences = [time - without for time, without in zip(times, base, strict=True)]
    return mean(differences) / mean(base), 1.96 * stdev(differences) / len(base) ** 0.5 / mean(base)


def page(found: dict[str, Any]) -> str:
    seconds = found["seconds a step"]
    rows = []
    for name, times in seconds.items():
        share, half = more(times, seconds["none"])
        own = found["own share"].get(name)
        rows.append([
            PEERS[name][0], f"{1e3 * mean(times):.1f} ms", "" if name == "none" else f"{share:+.1%} +- {half:.1%}",
            "" if own is None else f"{own:.2%}",
        ])  # fmt: skip
    head = ("", "CPU time a step, mean", "more than none, 95 %", "by its own clock")
    looks = "; ".join(
        f"{name}: " + ", ".join(f"{lane} {told['looks']} looks, last gap {told['gap']:.0f} steps"
                                for lane, told in of.items())
        for name, of in found["looks"].items()
    )  # fmt: skip
    return "\n\n".join([
        "## Overhead",
        f"A transformer of 4 blocks, width 192, batches of 8 x 64 tokens, one thread; {len(seconds['none'])} rounds of "
        f"{found['steps']} steps of each in turn, in one process. CPU seconds of this process, full "
        "spectra among them, which come every few hundred steps.",
        table(head, rows), looks,
        *found["missing"],
    ])  # fmt: skip

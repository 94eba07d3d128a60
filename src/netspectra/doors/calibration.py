"""Run a network on a few samples, for the second moments that planning needs; shard by shard, here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.errors import InputRefused
from netspectra.run.job import Job

if TYPE_CHECKING:
    import torch

    from netspectra.run import Run
    from netspectra.verbs.compress.calibrate import Calibration
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.weight import Source

__all__ = ["calibrate", "opened"]

ACTIVITY = 1 << 30  # bytes that a batch's forward and backward pass may hold


def calibrate(
    origin: str | Path,
    data: str | Path,
    *,
    shards: int = 8,
    model: str | Callable[[], torch.nn.Module] | None = None,
    samples: int = 512,
    tokens: int = 128,
    batch_size: int | None = None,
    run: Run | None = None,
    options: CompressOptions | None = None,
    progress: Callable[[str, float], None] | None = None,
    **wanted: Any,
) -> Calibration:
    """Sum up second moments of what enters each layer, and of the gradient at what leaves it, over a file of samples.

    Every ``shards``-th batch is a job of its own: it builds the model from the checkpoint and sums in float64. The
    sums are added in the order of the shards. So one process and a cluster give the same bytes. Another number of
    shards changes the last digits of the inputs' moments, and the draws that the gradients' are estimated with.
    Save it, and give the file to `compress` or `quantize`.

    Args:
        origin: a checkpoint's path.
        data: a file of samples: text, ``.npz`` or ``.safetensors``.
        shards: how many jobs; no more machines than that are of use.
        model: what builds the module, a callable or ``module:callable``, where no config does.
        samples: at most so many, evenly from the whole file.
        tokens: of a sample, at most.
        batch_size: samples a batch; by default what half a GiB of layer outputs allows, up to 32.
        run: another engine than this process.
        options: of the compression to come; what counts here is the selection, the objective, ``backward``,
            ``held_out`` (those samples are left for judging), ``spread`` and the seed.
        progress: called with what is being done and its share, 0 ... 1.
        wanted: fields of the options by name: ``include=("*mlp*",)``, ``seed=1``, ...

    Returns:
        A `netspectra.verbs.compress.calibrate.Calibration`; ``save(path)`` keeps it.

    Raises:
        InputRefused: no model can be built of the checkpoint, the file holds no samples, nothing is selected.

    >>> import tempfile, torch, netspectra as ns
    >>> from safetensors.torch import save_file
    >>> def make():
    ...     return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(make().state_dict(), f"{folder}/model.safetensors")
    ...     save_file({"x": torch.ones(64, 8)}, f"{folder}/inputs.safetensors")
    ...     found = ns.calibrate(f"{folder}/model.safetensors", f"{folder}/inputs.safetensors", model=make, shards=2)
    >>> found.samples, found.inputs["0"].second[0, 0].item()
    (56, 1.0)
    """
    from netspectra.run.local import LocalRun
    from netspectra.sources import open as open_source
    from netspectra.verbs.compress.calibrate import joined
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.verbs.compress.workshop import mixture

    if shards < 1:
        raise InputRefused(f"shards are 1 at least, found {shards}")
    if not Path(data).is_file():
        raise InputRefused(f"{data}: no such file; samples are text, .npz or .safetensors")
    options = replace(options or CompressOptions(), **wanted)
    need, operations = _cost(open_source(origin))
    place = Path(origin) if Path(origin).exists() else str(origin)
    setup = _Setup(place, Path(data), model, samples, tokens, batch_size, shards, options)
    jobs = [Job(f"shard {i + 1} of {shards}", (setup, i), need, operations) for i in range(shards)]
    found: dict[int, tuple[Calibration, Calibration | None]] = {}
    try:
        for done, (job, part) in enumerate((run or LocalRun())(_shard, jobs), 1):
            if part is not None:
                found[job.what[1]] = part
                for one in part:
                    if one is not None:
                        one.spill_()
            if progress is not None:
                progress("calibrating", done / shards)
    finally:
        _made.cache_clear()
    parts = [found[i] for i in sorted(found)]
    redrawn = [other for _, other in parts if other is not None]
    return mixture(joined([main for main, _ in parts]), joined(redrawn) if redrawn else None, options)


@dataclass(frozen=True)
class _Setup:
    """What makes a live model and its batches, by name, so that any machine can."""

    origin: str | Path
    data: Path
    model: str | Callable[[], Any] | None
    samples: int
    tokens: int
    batch_size: int | None
    shards: int
    options: CompressOptions


def _shard(job: Job) -> tuple[Calibration, Calibration | None] | None:
    """The moments of one shard, and those with tokens drawn anew; None for one that no batch falls to."""
    from netspectra.verbs.compress.workshop import prepared, taken

    setup, place = job.what
    _, network, batches = _made(setup)
    data = prepared(network, setup.options, batches)
    mine = replace(data, batches=data.batches[place :: setup.shards], extra=data.extra[place :: setup.shards])
    if not mine.batches:
        return None
    return taken(network, replace(setup.options, seed=setup.options.seed + place), mine)


@lru_cache(maxsize=1)
def _made(setup: _Setup) -> tuple[Source, torch.nn.Module, list[Any] | None]:
    """The model and its batches, made once a process."""
    origin = str(setup.origin)
    return opened(origin, setup.model, setup.data, setup.samples, setup.tokens, setup.batch_size)


def _cost(source: Source) -> tuple[int, float]:
    """Bytes at the peak of a shard, and about how many operations: the model, its moments, a batch in work."""
    from netspectra.verbs.compress.calibrate import WIDEST

    bytes_, entries = sum(ref.nbytes for ref in source.tensors) + ACTIVITY, 0
    for weight in source.weights:
        m, n = weight.shape
        sides = (n if weight.kind == "embedding" else m, n if m <= WIDEST else 0)
        entries += sum(side**2 for side in sides if side <= WIDEST)
    return bytes_ + 4 * entries, float(source.parameters)


def opened(
    path: str,
    make: str | Callable[[], torch.nn.Module] | None,
    calibration: Path | None,
    samples: int,
    tokens: int,
    size: int | None,
) -> tuple[Source, torch.nn.Module, list[Any] | None]:
    """The checkpoint, its live model, and calibration batches for it."""
    from netspectra.live.build import build, factory
    from netspectra.live.samples import affordable, is_tensors, read_samples, tensor_batches, text_batches, tokenizer
    from netspectra.sources import open as open_source

    source = open_source(path)
    made = factory(make) if isinstance(make, str) else make
    if calibration is None:
        return source, build(source, made), None
    if is_tensors(calibration):
        size = size or 32
        batches = tensor_batches(open_source(calibration), size=size)[: max(1, samples // size)]
        network = build(source, made)
        _must_run(network, batches, calibration)
        return source, network, batches
    texts, words = _spread(read_samples(calibration), samples), tokenizer(source)
    network = build(source, made)
    texts.sort(key=len)  # alike lengths in a batch: less padding
    size = size or affordable(network, tokens)
    return source, network, text_batches(texts, words, network, size=size, longest=tokens)


def _must_run(network: torch.nn.Module, batches: list[Any], file: Path) -> None:
    """Refuse inputs that are not the model's: one sample of each batch is run, that with the largest whole number.

    Raises:
        InputRefused: the model raises.
    """
    import torch

    from netspectra.errors import lacks_memory
    from netspectra.live.batches import call, samples_in, selected, tensors
    from netspectra.live.untouched import untouched
    from netspectra.verbs.compress.calibrate import fitting

    with untouched(network), torch.no_grad():
        for batch in batches:
            whole = [t for t in tensors(batch) if not t.is_floating_point() and t.numel()]
            row = int(whole[0].flatten(1).amax(1).argmax()) if whole and whole[0].dim() > 1 else 0
            sample = selected(batch, torch.tensor([row]), samples_in(batch))
            try:
                call(network, fitting(network, sample))
            except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as wrong:
                if lacks_memory(wrong):
                    raise
                reason = " ".join(str(wrong).split())[:160] or type(wrong).__name__
                raise InputRefused(
                    f"{file}: the model does not run on it: {reason}. Its arrays are to be what the model is called "
                    "with, by name or in order"
                ) from None


def _spread(texts: list[str], count: int) -> list[str]:
    """At most ``count`` of them, evenly from the whole file."""
    return texts if len(texts) <= count else [texts[i * len(texts) // count] for i in range(count)]

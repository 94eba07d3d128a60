"""One file that runs without this package: ``.pt2`` with torch alone, ``.onnx`` with onnxruntime."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.live.batches import main_output
from netspectra.live.saved import Saved

__all__ = ["SUFFIXES", "export"]

SUFFIXES = (".pt2", ".onnx")


def _plain(model: nn.Module, names: list[str], keyword: bool) -> nn.Module:
    """The model as a module that takes arguments of these names and gives a plain tensor."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return main_output(self.model(*args, **kwargs))

    kind = inspect.Parameter.KEYWORD_ONLY if keyword else inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.Signature([own, *(inspect.Parameter(name, kind) for name in names)])
    Plain.forward.__signature__ = signature  # type: ignore[attr-defined]  # what the recording calls its inputs
    return Plain().eval()


def export(model: nn.Module, to: str | Path, example: Any) -> Saved:
    """Record one call of the model and write it, for any batch size and any sequence length or image size it takes.

    The recorded function takes the arguments of the example by the same names and gives the tensor that
    `netspectra.live.batches.main_output` chooses (logits, last_hidden_state, ...). Factors stay factors.

    Args:
        model: the live model; it is exported in eval mode from a copy without gradients, and not changed.
        to: ``NAME.pt2`` or ``NAME.onnx``.
        example: a batch, as `netspectra.live.batches.call` takes it.

    Raises:
        InputRefused: no example; an extra is missing; the model does something that cannot be recorded.
    """
    to = Path(to)
    if example is None:
        raise InputRefused(f"{to}: {to.suffix} records a call: give example=, a batch of inputs")
    if to.suffix == ".onnx" and (find_spec("onnx") is None or find_spec("onnxscript") is None):
        raise InputRefused(f"{to}: writing ONNX needs onnx and onnxscript: pip install 'netspectra[onnx]'")
    if not to.parent.is_dir():
        raise InputRefused(f"{to}: the folder {to.parent} does not exist")
    args, kwargs = _arguments(example)
    names = [f"input_{place}" for place in range(len(args))] + list(kwargs)
    plain = _plain(_quiet_copy(model), names, bool(kwargs))
    shapes = {name: _free(value) for name, value in zip(names, (*args, *kwargs.values()), strict=True)}
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".netspectra-") as home, torch.no_grad():
        made = Path(home) / to.name
        try:
            with warnings.catch_warnings(), _hushed("torch.onnx._internal.exporter._registration"):
                warnings.simplefilter("ignore")
                recorded = torch.export.export(plain, args, kwargs, dynamic_shapes=shapes, strict=False)
                if to.suffix == ".pt2":
                    torch.export.save(recorded, made)
                else:
                    torch.onnx.export(recorded, args, str(made), kwargs=kwargs, input_names=names, dynamo=True,
                                      output_names=["output"], external_data=False, verbose=False)  # fmt: skip
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as wrong:
            reason = (str(wrong).strip().splitlines() or [type(wrong).__name__])[0][:200]
            raise InputRefused(f"{to}: {type(model).__name__} cannot be recorded: {reason}") from None
        try:
            os.replace(made, to)
        except OSError as wrong:
            raise EnvironmentFailure(f"{to}: cannot be written: {wrong.strerror}") from None
    return Saved(str(to), to.stat().st_size, True, 0)


@contextmanager
def _hushed(name: str) -> Iterator[None]:
    """Keep a logger below errors silent inside the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _quiet_copy(model: nn.Module) -> nn.Module:
    """The same parameters in another tree of modules, without a cache of keys and values."""
    kept = {id(p): p for p in (*model.parameters(), *model.buffers())}
    found = copy.deepcopy(model, memo=kept)
    config: Any = getattr(found, "config", None)
    if config is not None and hasattr(config, "use_cache"):
        config.use_cache = False
    return found


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as positional and named arguments, with two samples: one would be taken for a constant."""
    if isinstance(example, Mapping):
        return (), {name: _two(value) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(_two(value) for value in example), {}
    return (_two(example),), {}


def _two(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() and len(value) == 1 else value


def _free(value: Any) -> Any:
    """Every axis may vary, but for those the model turns out to need as they are."""
    return dict.fromkeys(range(value.dim()), torch.export.Dim.AUTO) if isinstance(value, Tensor) else None

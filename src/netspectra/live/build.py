"""A live model from a checkpoint: its architecture from the config, its numbers from our own readers.

No code of the checkpoint's ever runs: no pickle, no remote code, no hub kernel. What the installed transformers knows
by its ``model_type`` is built by it; anything else is built by a callable that the user names.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from netspectra.composed import compose
from netspectra.errors import InputRefused
from netspectra.live.gguf import for_transformers
from netspectra.weight import ITEMSIZE, Source, TensorRef

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "Purpose",
    "build",
    "factory",
    "fill_",
    "hushed",
    "numbers",
    "quiet_transformers",
    "skeleton",
    "state_owners",
]

# Entries of a config.json that choose how to compute, or which code to fetch: not a checkpoint's to decide.
IMPLEMENTATION = ("auto_map", "custom_pipelines", "kernel_config", "fusion_config", "quantization_config",
                  "compression_config", "transformers_weights", "netspectra")  # fmt: skip


@dataclass(frozen=True)
class Purpose:
    """What a model of a config is built for, as refusals say it.

    Attributes:
        needs: who needs transformers; the subject of a sentence.
        instead: what to do where it knows no such model.
    """

    needs: str = "building a live model"
    instead: str = "build it: --model module:callable"


def build(source: Source, make: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The live model of a checkpoint, in eval mode, with the numbers of the checkpoint and no others.

    Packed weights are decoded; tied weights are one parameter. The dtype is the one most numbers are stored in, which
    for packed weights is float32.

    Args:
        source: an opened checkpoint (``ns.open(path)``).
        make: builds the module the checkpoint belongs to; by default transformers does, from ``config.json`` or from
            the metadata of a GGUF file.

    Raises:
        InputRefused: no config, an architecture that is unknown, a parameter that the checkpoint lacks, a tensor of
            it that fits nowhere.
    """
    if make is not None:
        model = _made(make)
        fill_(model, numbers(source), source.path)
        return model.eval()
    if source.format == "gguf":
        return _pretrained(source, *for_transformers(source))
    if "peft" in source.config:
        raise InputRefused(f"{source.path}: is an adapter, not a model; merge it into its base model first")
    return _pretrained(source, source.config, numbers(source))


def factory(name: str, option: str = "--model ") -> Callable[[], nn.Module]:
    """The callable that ``module:callable`` names; it is the user's own code, imported as Python finds it.

    Raises:
        InputRefused: no such module or callable.

    >>> factory("torch.nn:Identity")()
    Identity()
    """
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise InputRefused(f"{option}{name}: give module:callable, as in my_package.models:make")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as wrong:
        raise InputRefused(
            f"{option}{name}: no module {wrong.name!r}; it must be importable (PYTHONPATH=. for one in this folder)"
        ) from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputRefused(f"{option}{name}: {module} has no callable {attribute!r}")
    return cast("Callable[[], nn.Module]", found)


def numbers(source: Source) -> tuple[TensorRef, ...]:
    """The tensors of a checkpoint as its modules compute with them: codes and scales become numbers."""
    coded = any(len(ref.shape) > 1 and not _floating(ref) for ref in source.tensors)
    return compose(source.tensors, source.config, source.path) if coded else source.tensors


def fill_(model: nn.Module, refs: Iterable[TensorRef], what: str = "the checkpoint") -> None:
    """Give every parameter and persistent buffer of a module the number of its name, in the stored dtype.

    Tied parameters stay tied and need one of their names. Each tensor goes to the device that it replaces (to the CPU
    from the meta device).

    Raises:
        InputRefused: a name that is missing, left over or of another shape; nothing has been changed then.
    """
    stored = _unprefixed({ref.name: ref for ref in refs})
    owners = state_owners(model)
    found = {names: ref for names in owners for ref in [next((stored[n] for n in names if n in stored), None)] if ref}
    missing = [names[0] for names in owners if names not in found]
    taken = {name for names in owners for name in names}
    over = [name for name, ref in stored.items() if name not in taken and _floating(ref)]
    wrong = [
        f"{ref.name} {list(ref.shape)} for {list(owners[names][0].shape)}"
        for names, ref in found.items()
        if tuple(ref.shape) != tuple(owners[names][0].shape)
    ]
    unread = [f"{ref.name} ({ref.problem})" for ref in found.values() if ref.problem]
    _complain(what, missing, over, wrong, unread)
    for names, ref in found.items():
        old, places = owners[names]
        new = ref.load().to("cpu" if old.is_meta else old.device)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad and new.is_floating_point())
        for module, attribute in places:
            setattr(module, attribute, new)


Owners = dict[tuple[str, ...], tuple[Tensor, list[tuple[nn.Module, str]]]]


def state_owners(model: nn.Module) -> Owners:
    """Every tensor of a state dict once: all its names, and where each of them keeps it."""
    by_tensor: dict[int, tuple[Tensor, list[str], list[tuple[nn.Module, str]]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        kept = {name: value for name, value in module._buffers.items()
                if name not in module._non_persistent_buffers_set}  # fmt: skip
        for name, value in {**module._parameters, **kept}.items():
            if value is not None:
                _, names, places = by_tensor.setdefault(id(value), (value, [], []))
                names.append(f"{dot}{name}")
                places.append((module, name))
    return {tuple(names): (value, places) for value, names, places in by_tensor.values()}


def skeleton(config: Mapping[str, Any], what: str, purpose: Purpose = Purpose()) -> PreTrainedModel:
    """The transformers model of a config, with memory for its numbers but none in it."""
    made = _config(config, what, purpose)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        from transformers.initialization import no_init_weights

        with no_init_weights():
            model = _class(config, made, what)(made)
        model.tie_weights()
    return model.eval()


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        model = make()
    if not isinstance(model, nn.Module):
        raise InputRefused(f"--model gave {type(model).__name__}, not a torch.nn.Module")
    return model


def _pretrained(source: Source, config: Mapping[str, Any], refs: tuple[TensorRef, ...]) -> nn.Module:
    """Let transformers build and rename, from numbers that it asks for one by one."""
    made = _config(config, source.path)
    with quiet_transformers():
        kind = _class(config, made, source.path)
    unread = [f"{ref.name} ({ref.problem})" for ref in refs if ref.problem]
    _complain(source.path, (), (), (), unread)
    lazy = {ref.name: _Lazy(ref) for ref in refs}
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        answer: Any = kind.from_pretrained(
            None,
            config=made,
            state_dict=lazy,
            dtype=_dtype(refs),
            attn_implementation=None,
            ignore_mismatched_sizes=True,  # so that all of them are told at once
            output_loading_info=True,
            trust_remote_code=False,
        )
    model, info = answer
    over = [name for name in sorted(info["unexpected_keys"]) if name not in lazy or _floating(lazy[name].ref)]
    wrong = [f"{name} {list(a)} for {list(b)}" for name, a, b in sorted(info["mismatched_keys"])]
    _complain(source.path, sorted(info["missing_keys"]), over, wrong, [*info["error_msgs"]])
    return model.eval()


@dataclass(frozen=True, eq=False)
class _Lazy:
    """A tensor that transformers loads by indexing it, as it does a slice of a safetensors file."""

    ref: TensorRef

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.ref.shape)

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.ref.dtype)

    def __getitem__(self, index: Any) -> Tensor:
        found = self.ref.load()
        return found if index is Ellipsis else found[index]


def _config(config: Mapping[str, Any], what: str, purpose: Purpose = Purpose()) -> PretrainedConfig:
    """The config object of a ``model_type`` that the installed transformers knows."""
    if find_spec("transformers") is None:
        raise InputRefused(f"{what}: {purpose.needs} needs transformers: pip install 'netspectra[transformers]'")
    with hushed():
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING, __version__

    name = config.get("model_type")
    if not config:
        raise InputRefused(f"{what}: no config.json says what model this is; {purpose.instead}")
    if not isinstance(name, str) or name not in CONFIG_MAPPING:
        remote = " (the code that its config.json names is never run)" if "auto_map" in config else ""
        raise InputRefused(
            f"{what}: config.json: the model_type {name!r} is not known to transformers {__version__}{remote}; "
            f"{purpose.instead}"
        )
    plain = {key: value for key, value in config.items() if key not in IMPLEMENTATION and "implementation" not in key}
    try:
        with quiet_transformers():
            return CONFIG_MAPPING[name].from_dict(plain)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as wrong:
        raise InputRefused(f"{what}: config.json: {' '.join(str(wrong).split())[:200]}") from None


def _class(config: Mapping[str, Any], made: PretrainedConfig, what: str) -> type[PreTrainedModel]:
    """The class that ``architectures`` names, else the bare model of the config."""
    import transformers

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    found = getattr(transformers, name, None) if name.isidentifier() and not name.startswith("_") else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    mapping: Any = transformers.MODEL_MAPPING
    if type(made) not in mapping:
        raise InputRefused(f"{what}: config.json: no model class for {name or type(made).__name__!r}")
    bare = mapping[type(made)]
    return bare[0] if isinstance(bare, tuple) else bare


def _dtype(refs: Iterable[TensorRef]) -> torch.dtype:
    """What most numbers are stored in."""
    counts: Counter[str] = Counter()
    for ref in refs:
        if _floating(ref):
            counts[ref.dtype] += ref.numel
    return getattr(torch, counts.most_common(1)[0][0]) if counts else torch.float32


def _floating(ref: TensorRef) -> bool:
    return ref.dtype.startswith(("float", "bfloat")) and ITEMSIZE.get(ref.dtype, 0) > 1


def _unprefixed(stored: dict[str, TensorRef]) -> dict[str, TensorRef]:
    """Without what DataParallel or torch.compile put before every name."""
    for prefix in ("module.", "_orig_mod."):
        if stored and all(name.startswith(prefix) for name in stored):
            stored = {name.removeprefix(prefix): ref for name, ref in stored.items()}
    return stored


def _complain(
    what: str, missing: Iterable[str], over: Iterable[str], wrong: Iterable[str], unread: Iterable[str]
) -> None:
    """Refuse, with names, a checkpoint and a model that do not fit each other."""
    parts = []
    groups = (("lacks", missing), ("has no place for", over), ("has other shapes", wrong), ("cannot be read", unread))
    for verb, group in groups:
        names = list(group)
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            parts.append(f"{verb}: {', '.join(names[:4])}{more}")
    if parts:
        raise InputRefused(f"{what}: does not fit the model; {'; '.join(parts)}. Is it the right config or --model?")


@contextmanager
def hushed() -> Iterator[None]:
    """Not a word of the kernels that torchao has for other machines while it is imported, by transformers perhaps."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no load report of transformers' inside the block; its own errors still raise."""
    with hushed():
        from transformers.utils import logging as theirs

        level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
        theirs.set_verbosity_error()
        theirs.disable_progress_bar()
        try:
            yield
        finally:
            theirs.set_verbosity(level)
            if bars:
                theirs.enable_progress_bar()

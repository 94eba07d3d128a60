"""Compressed models on disk: a folder that loads elsewhere, and the way back.

Where a config can say what the model has become, the folder is a stock one, which ``AutoModel.from_pretrained`` loads.
Else it holds the tensors under the live model's names and, in ``netspectra.json``, what stands where a layer stood;
`load` builds that structure and fills it. Its weights are then called ``netspectra.safetensors``, so that a loader
which knows nothing of the replacements fails instead of making up what it misses.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from netspectra.checkpoint import MANIFEST, SHARD, new_folder, write_shards
from netspectra.errors import InputRefused
from netspectra.forms import FORMS
from netspectra.forms.place import Placed, link_, placed, rebuild_
from netspectra.live.build import build, fill_, quiet_transformers, skeleton, state_owners
from netspectra.live.samples import tokenizer
from netspectra.live.stock import is_transformers, stock_config
from netspectra.weight import InMemory, Source, TensorRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Saved", "go_along", "load", "same_config", "save", "save_config", "save_tensors", "state"]

# What may go along from the checkpoint's folder: what describes, never weights, never code.
BESIDE = frozenset((".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"))
NOT_BESIDE = frozenset(("config.json", "adapter_config.json", MANIFEST))
SMALL = 1 << 26


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: the folder.
        bytes: of all files of weights.
        stock: loads without this package: transformers' ``from_pretrained`` for its models, a plain state dict else.
        replacements: modules that `load` has to rebuild; 0 for stock folders.
        notes: what a reader should know.
    """

    path: str
    bytes: int
    stock: bool
    replacements: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        how = "loads without netspectra" if self.stock else f"{self.replacements} replaced modules: ns.load(...)"
        return f"{self.path}: {self.bytes:,} bytes, {how}"


def save(
    model: nn.Module,
    to: str | Path,
    *,
    source: Source | None = None,
    beside: Callable[[Path], None] = lambda folder: None,
    largest: int = SHARD,
) -> Saved:
    """Write a model, compressed or not, as a folder that `load` reads: all of it or nothing.

    Safetensors only; tied parameters are written once and stay tied; every tensor keeps its dtype.

    Args:
        model: the live model.
        to: the folder: new, empty, or one that was written by netspectra.
        source: the checkpoint it came from: tokenizer and other small files go along, and tensors that were not
            changed are copied byte for byte under their old dtype.
        beside: writes more files into the folder, which holds the tensors by then.
        largest: bytes of one file of weights.

    Raises:
        InputRefused: the folder holds something else; the model has state that safetensors cannot hold.
        EnvironmentFailure: it cannot be written.
    """
    records = placed(model)
    config = stock_config(model) if is_transformers(model) else None
    if config is not None:
        with new_folder(to) as folder:
            notes = go_along(folder, source)
            _save_stock(cast("PreTrainedModel", model), config, folder, largest)
            beside(folder)
            size = _bytes(folder)
        return Saved(str(to), size, True, 0, tuple(notes))
    refs, tied = state(model, source)
    describe = partial(save_config, cast("PreTrainedModel", model)) if is_transformers(model) else None
    return save_tensors(
        refs, records, to, source=source, tied=tied, describe=describe, beside=beside, largest=largest
    )  # fmt: skip


def save_tensors(
    refs: Sequence[TensorRef],
    records: Sequence[Placed],
    to: str | Path,
    *,
    source: Source | None = None,
    tied: Mapping[str, str] | None = None,
    describe: Callable[[Path], None] | None = None,
    beside: Callable[[Path], None] = lambda folder: None,
    stock: bool = False,
    largest: int = SHARD,
) -> Saved:
    """Write tensors, which may still lie in files, and what `load` has to rebuild for them; one in memory at a time.

    Args:
        refs: under the live model's names.
        records: what stands where a layer stood.
        to: the folder.
        source: whose small files go along.
        tied: other names of tensors, and the name they are written under.
        describe: writes the config into the folder; where there is one, transformers builds the model.
        beside: writes more files into the folder, which holds the tensors by then.
        stock: the config says all there is to know, so that transformers' own loader finds the weights, too.
        largest: bytes of one file.
    """
    ours = describe is not None and not stock
    with new_folder(to) as folder:
        notes = go_along(folder, source)
        if describe is not None:
            describe(folder)
        manifest = {"format": 1, "replacements": [one.to_dict() for one in records]} | ({"tied": tied} if tied else {})
        write_shards(folder, refs, stem="netspectra" if ours else "model", largest=largest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        beside(folder)
        size = _bytes(folder)
    return Saved(str(to), size, not ours and not records, len(records), tuple(notes))


def same_config(source: Source) -> Callable[[Path], None] | None:
    """Writes the checkpoint's config as it is, for `save_tensors`; None where it has none."""
    if not source.config:
        return None
    text = json.dumps({key: value for key, value in source.config.items() if key != "netspectra"}, indent=2) + "\n"

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(text, encoding="utf-8")

    return write


def load(source: Source, model: nn.Module | None = None) -> nn.Module:
    """The model that `save` wrote, in eval mode; any other checkpoint that `build` can build, too.

    Args:
        source: the opened folder.
        model: the module as it was before it was compressed, to be given the saved structure and numbers in place;
            needed where no ``config.json`` says how to build one. Its numbers do not matter.

    Raises:
        InputRefused: there is no config and no model, the manifest is damaged, or what it says does not fit.
    """
    manifest = _manifest(source)
    if model is None and not manifest.get("replacements") and "tied" not in manifest:
        return build(source)
    if model is None:
        model = skeleton(source.config, source.path)
        _onto_meta_(model)
    try:
        records = [Placed(one["module"], one["form"], dict(one["spec"])) for one in manifest.get("replacements", ())]
    except (KeyError, TypeError, ValueError):
        raise InputRefused(f"{source.path}: {MANIFEST}: a replacement is not {{module, form, spec}}") from None
    for one in records:
        if one.form not in FORMS:
            raise InputRefused(f"{source.path}: {MANIFEST}: unknown form {one.form!r}; there are {', '.join(FORMS)}")
        try:
            rebuild_(model, [one])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as wrong:
            reason = (str(wrong).splitlines() or [type(wrong).__name__])[0][:160]
            raise InputRefused(f"{source.path}: {MANIFEST}: {one.module} cannot become {one.form}: {reason}") from None
    try:
        link_(model, records)
    except ValueError as wrong:
        raise InputRefused(f"{source.path}: {MANIFEST}: {wrong}") from None
    _tie_(model, manifest.get("tied", {}), source)
    fill_(model, source.tensors, source.path)
    return model.eval()


# ---- writing -----------------------------------------------------------------------------------------------------


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _save_stock(model: PreTrainedModel, config: Any, folder: Path, largest: int) -> None:
    """By transformers itself, which knows its names on disk; the live model's own config comes back."""
    before = model.config
    with quiet_transformers():
        try:
            model.config = config
            model.save_pretrained(folder, max_shard_size=largest)
        finally:
            model.config = before


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Write ``config.json``, and ``generation_config.json`` where the model has one."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)


def state(model: nn.Module, source: Source | None = None) -> tuple[list[TensorRef], dict[str, str]]:
    """Every tensor of the state dict once, and the other names of those that have several."""
    owners = state_owners(model)
    other = sorted(set(model.state_dict()) - {name for names in owners for name in names})
    if other:
        raise InputRefused(f"{other[0]}: is state that safetensors cannot hold; only tensors can be saved")
    before = {ref.name: ref for ref in source.tensors} if source is not None else {}
    refs, tied = [], {}
    for names, (tensor, _) in owners.items():
        refs.append(_ref(names[0], tensor, before.get(names[0])))
        tied |= dict.fromkeys(names[1:], names[0])
    return refs, tied


def _ref(name: str, tensor: Tensor, before: TensorRef | None) -> TensorRef:
    """Where to read a tensor: the checkpoint's own bytes if they are what the model holds, else memory."""
    problem = ""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        problem = "on the meta device" if tensor.is_meta else "sparse or quantized storage"
    elif before is not None and not before.problem and before.shape == tuple(tensor.shape):
        stored = before.load()
        if torch.equal(stored.to(tensor.dtype), tensor.detach().cpu()):
            return before
    return TensorRef(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), InMemory(tensor), {}, None,
                     problem)  # fmt: skip


def go_along(folder: Path, source: Source | None) -> list[str]:
    """Copy what describes the checkpoint; of a GGUF file, write the tokenizer that its metadata hold."""
    if source is None or source.root is None:
        return []
    if source.format == "gguf":
        try:
            tokenizer(source).save_pretrained(folder)
        except InputRefused as refused:
            return [f"without a tokenizer: {refused}"]
        return []
    home = source.root if source.root.is_dir() else source.root.parent
    if not ((home / "config.json").exists() or source.root.is_dir()):
        return []  # a lone file in a folder of other things
    for path in (*sorted(home.glob("*")), *sorted(home.glob("*/config.json"))):
        wanted = path.suffix in BESIDE or path.stem.upper() in ("LICENSE", "NOTICE")
        index = path.name.endswith(".index.json")
        if wanted and not index and (path.parent != home or path.name not in NOT_BESIDE) and _plain(path, home):
            (folder / path.relative_to(home)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(home))
    return []


def _plain(path: Path, home: Path) -> bool:
    """A small regular file of the folder, or of the hub's cache, whose links lead into its ``blobs``."""
    target, base = path.resolve(), home.resolve()
    cache = base.parent.parent / "blobs" if base.parent.name == "snapshots" else base
    return path.is_file() and (target.is_relative_to(base) or target.parent == cache) and path.stat().st_size <= SMALL


# ---- reading -----------------------------------------------------------------------------------------------------


def _manifest(source: Source) -> Mapping[str, Any]:
    path = (source.root if source.root is None or source.root.is_dir() else source.root.parent) or Path()
    path = path / MANIFEST
    if source.root is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= SMALL else None
    except (ValueError, RecursionError) as wrong:
        raise InputRefused(f"{path}: is no JSON: {wrong}") from None
    if not isinstance(found, dict) or not isinstance(found.get("replacements", []), list):
        raise InputRefused(f"{path}: is not what netspectra writes")
    if found.get("format") != 1:
        raise InputRefused(f"{path}: has the format {found.get('format')!r}, this version reads 1; update netspectra")
    if not isinstance(found.get("tied", {}), dict):
        raise InputRefused(f"{path}: tied: is not a table of names")
    return found


def _onto_meta_(model: nn.Module) -> None:
    """Let go of every parameter's memory, so that no replacement, however absurd, allocates any."""
    for tensor, places in state_owners(model).values():
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
            for module, attribute in places:
                setattr(module, attribute, empty)


def _tie_(model: nn.Module, tied: Mapping[str, Any], source: Source) -> None:
    """Make one parameter of those that were one."""
    for alias, name in tied.items():
        try:
            parent, _, attribute = str(alias).rpartition(".")
            kept = model.get_parameter(str(name))
            setattr(model.get_submodule(parent), attribute, kept)
        except AttributeError as wrong:
            raise InputRefused(f"{source.path}: {MANIFEST}: tied: {wrong}") from None

"""A narrower residual stream: rotated to its principal directions and cut, and what reads it fitted again."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms.factors import is_conv1d
from netspectra.forms.resized import bias_of, fill_, resized
from netspectra.linalg.orthogonal import semi_orthogonal
from netspectra.linalg.pairs import Pairs, anchored
from netspectra.live.batches import call, main_output, samples_in, selected
from netspectra.live.spill import Spill
from netspectra.live.untouched import untouched
from netspectra.live.watching import watching
from netspectra.verbs.compress.calibrate import layers
from netspectra.verbs.compress.objective import token_mask
from netspectra.verbs.compress.sites import matrix
from netspectra.verbs.distill.paired import Rows, paired, refuse_broken

__all__ = ["Stream", "narrower", "stream_of", "width_of"]

AGREE = 1e-3  # relative difference of outputs under which a rotated model is the same
LARGEST = 1 << 30  # bytes of moments held at once; more passes over the data where they would take more
WAVES = 8  # runs of norms that are fitted along the student; SmolLM2: from one to twelve each more helps a little
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")  # what configs call the width of the stream


@dataclass(frozen=True)
class Stream:
    """What writes to and what reads from a residual stream whose norms stand before the layers.

    Attributes:
        width: d.
        readers: by norm, the linear layers that read its output.
        writers: embeddings and linear layers whose outputs are added up.
        centred: the norms subtract the mean (LayerNorm); else they do not (RMSNorm).
    """

    width: int
    readers: Mapping[str, tuple[str, ...]]
    writers: tuple[str, ...]
    centred: bool


def width_of(model: nn.Module) -> tuple[int, tuple[str, ...]]:
    """The size that most norms of a model have, and their names; 0 where it has none."""
    sizes = {name: len(cast(Tensor, m.weight)) for name, m in model.named_modules() if _is_norm(m)}
    if not sizes:
        return 0, ()
    width = max(Counter(sizes.values()).items(), key=lambda item: (item[1], item[0]))[0]
    return width, tuple(name for name, size in sizes.items() if size == width)


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("RMSNorm")
    weight = getattr(module, "weight", None)
    return known and isinstance(weight, Tensor) and weight.dim() == 1


def stream_of(model: nn.Module, batch: Any) -> Stream:
    """Find the stream by what flows where, and prove it: a model whose stream is turned at random does the same.

    Norms without their gains commute with rotations; gains and, for LayerNorm, the mean and the bias go into the layers
    around it (SliceGPT: Ashkboos et al. 2024, arXiv 2401.15024). No name decides: the turned model is run.

    Raises:
        InputRefused: there is no such stream: norms stand behind the sum (BERT), or something else reads it.
    """
    width, norms = width_of(model)
    if not width:
        raise InputRefused(f"{type(model).__name__}: has no LayerNorm or RMSNorm, so no residual stream to narrow")
    few = selected(batch, torch.arange(min(2, samples_in(batch))), samples_in(batch))
    centred = isinstance(model.get_submodule(norms[0]), nn.LayerNorm)
    made: dict[tuple[int, int], tuple[str, Tensor]] = {}
    readers: dict[str, list[str]] = {name: [] for name in norms}
    modules = layers(model)

    def note(name: str) -> Callable[..., None]:
        def noted(norm: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            made[y.data_ptr(), y.numel()] = name, y  # the tensor is kept, so that no other takes its place
            _, gain, bias = _scaled(norm)
            if not _close(_normalized(norm, args[0], centred) * gain + bias, y):
                kind = type(norm).__name__
                raise InputRefused(f"{name}: is a norm of another kind ({kind}); its stream stays as it is")

        return noted

    def look(name: str) -> Callable[..., None]:
        def looked(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0] if args else None
            found = made.get((x.data_ptr(), x.numel())) if isinstance(x, Tensor) else None
            if found is not None and name not in readers[found[0]]:
                readers[found[0]].append(name)

        return looked

    handles = [model.get_submodule(n).register_forward_hook(note(n)) for n in norms]
    handles += [m.register_forward_pre_hook(look(n)) for n, m in modules.items()]
    try:
        with untouched(model), torch.no_grad():
            before = main_output(call(model, few))
    finally:
        for handle in handles:
            handle.remove()
    reading = {name for some in readers.values() for name in some}
    writers = [name for name, module in modules.items() if name not in reading and _outputs(module) == width]
    found = Stream(width, {name: tuple(some) for name, some in readers.items()}, tuple(writers), centred)
    generator = torch.Generator().manual_seed(0)
    basis = _level(width) if centred else torch.eye(width, dtype=torch.float64)
    turn = semi_orthogonal(basis.shape[1], basis.shape[1], generator)
    turned = _cut(model, found, basis @ turn @ basis.mT)
    with untouched(turned), torch.no_grad():
        try:
            same = _close(main_output(call(turned, few)), before)
        except (RuntimeError, ValueError) as wrong:
            raise InputRefused(_refusal(model, " ".join(str(wrong).split())[:120])) from None
    if not same:
        raise InputRefused(_refusal(model, "turning its stream changes the output"))
    return found


def _refusal(model: nn.Module, why: str) -> str:
    return (
        f"{type(model).__name__}: its residual stream cannot be rotated ({why}). That needs norms before the layers, "
        "linear layers and embeddings around them, and an output that is not the stream itself (a head)"
    )


def narrower(
    model: nn.Module,
    batches: Sequence[Any],
    width: int,
    *,
    select: Literal["principal", "random"] = "principal",
    refit: bool = True,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> nn.Module:
    """A copy whose residual stream has fewer dimensions.

        x' = R x,    R: the leading eigenvectors of  sum over norms of E[u u^T],  u = x / rms(x)
        a reader  W diag(g) u  becomes  W diag(g) T u',    T: u about T u',  u' = x' / rms(x')

    One rotation for the whole stream, so the copy is of the same class, without adapters. LayerNorm keeps one dimension
    of the new stream for its mean; a bias of it goes through that dimension.

    T is fitted twice, by ridges whose strength either half of the samples chooses for the other: towards a multiple of
    R^T from the model's own stream, then towards that from what the student makes by then, some norms at a time.

    Args:
        model: not changed.
        batches: what it is called with.
        width: dimensions of the stream that stay.
        select: which directions; ``random`` to compare with.
        refit: fit T; else R^T (to compare with).
        seed: of random directions.
        progress: told the share done.

    Raises:
        InputRefused: no stream that can be turned, or no such width.

    Cost: two passes over the data and 8 halves of one with each model; d k multiplications a token and norm; for each
    norm some d k^2. Memory: the model, its copy, and moments of at most 1 GB (of one norm, 16 k (k + d) bytes, where
    that is more); the fits wait in a temporary file, 4 d k bytes a norm.
    """
    found = stream_of(model, batches[0])
    if not 1 + found.centred <= width <= found.width:
        raise InputRefused(f"stream={width}: the model's has {found.width} dimensions")

    def unit(name: str, norm: nn.Module, x: Tensor, y: Tensor, batch: Any) -> Tensor:
        keep = token_mask(name, x.shape[:-1], batch)
        x = (x[keep] if keep is not None else x.flatten(0, -2)).float()
        return _normalized(norm, x, found.centred)

    def cut(name: str, norm: nn.Module, x: Tensor, y: Tensor, batch: Any) -> Tensor:
        return unit(name, norm, x.float() @ R.mT.to(x.device, torch.float32), y, batch)

    R = _directions(found, _second(model, found, batches, unit), width, select, seed)
    progress(0.2)
    new = _cut(model, found, R)
    refuse_broken(new, batches[0])
    if not refit:
        return new
    spill, fits = Spill(), {}
    for names in _waves(found, width, 1):
        for name, halves in paired(model, model, batches, names, cut, unit).items():
            T = anchored(halves, _prior(halves, R))
            _read_(new, model, found, name, T)
            fits[name] = spill.put(T.float())
    progress(0.4)
    waves = _waves(found, width, WAVES)
    for done, names in enumerate(waves):
        for name, halves in paired(model, new, batches, names, unit, unit).items():
            _read_(new, model, found, name, anchored(halves, fits[name]().double()))
        progress(0.4 + 0.6 * (done + 1) / len(waves))
    return new


def _second(model: nn.Module, found: Stream, batches: Sequence[Any], unit: Rows) -> Tensor:
    """(d, d) sum over norms and tokens of u u^T."""
    total = torch.zeros(found.width, found.width, dtype=torch.float64)
    now: Any = None

    norms = {name: model.get_submodule(name) for name in found.readers}

    def add(name: str, x: Tensor, y: Tensor) -> None:
        u = unit(name, norms[name], x, y, now)
        total.add_((u.mT @ u).to(total))

    with untouched(model), torch.no_grad(), watching(norms, add):
        for now in batches:
            call(model, now)
    return total


def _directions(found: Stream, second: Tensor, width: int, select: str, seed: int) -> Tensor:
    """(width, d) orthonormal rows: what the new stream keeps of the old one."""
    basis = _level(found.width) if found.centred else torch.eye(found.width, dtype=torch.float64)
    inner = width - found.centred
    if select == "random":
        kept = semi_orthogonal(basis.shape[1], inner, torch.Generator().manual_seed(seed))
    else:
        kept = torch.linalg.eigh(basis.mT @ second @ basis)[1].flip(1)[:, :inner]
    R = (basis @ kept).mT
    return _level(width) @ R if found.centred else R


def _waves(found: Stream, width: int, least: int) -> list[list[str]]:
    """Norms in the order in which they run, in ``least`` runs, or more where their moments would not fit."""
    names = [name for name, readers in found.readers.items() if readers]
    each = 2 * (found.width + width) * width * 8
    size = max(1, min(LARGEST // each, -(-len(names) // least)))
    return [names[i : i + size] for i in range(0, len(names), size)]


def _prior(halves: Sequence[Pairs], R: Tensor) -> Tensor:
    """c R^T with the c that is best: what readers see without any fit."""
    zz, yz = (halves[0] + halves[1]).moments()
    return float((R @ yz).trace() / zz.trace()) * R.mT


def _cut(model: nn.Module, found: Stream, R: Tensor) -> nn.Module:
    """A copy whose stream is R x; readers see R^T u' for u, times what keeps its size."""
    k = len(R)
    new = copy.deepcopy(model)
    for name in found.writers:
        module = model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            made = copy.deepcopy(module)
            made.embedding_dim = k
            made.weight = _parameter(module.weight, module.weight.detach().double().cpu() @ R.mT)
        else:
            bias = bias_of(module)
            W = matrix(module)
            made = fill_(resized(module, k, W.shape[1]), R @ W, None if bias is None else R @ bias.detach().double())
        new.set_submodule(name, made)
    for name in found.readers:
        norm = model.get_submodule(name)
        _read_(new, model, found, name, R.mT * (found.width / k) ** 0.5)
        plain: Any = copy.deepcopy(norm)
        plain.weight = _parameter(cast(Tensor, norm.weight), torch.ones(k))
        if isinstance(getattr(norm, "bias", None), Tensor):
            plain.bias = _parameter(cast(Tensor, norm.bias), torch.ones(k))
        if hasattr(plain, "normalized_shape"):
            plain.normalized_shape = (k,)
        new.set_submodule(name, plain)
    for name, module in model.named_modules():  # what was put in place has the mode of what stood there
        new.get_submodule(name).training = module.training
    _tell(getattr(new, "config", None), found.width, k)
    return new


def _read_(new: nn.Module, model: nn.Module, found: Stream, name: str, T: Tensor) -> None:
    """Let what reads a norm see T u' for u."""
    k = T.shape[1]
    _, gain, offset = (
        t.detach().double().cpu() if isinstance(t, Tensor) else t for t in _scaled(model.get_submodule(name))
    )
    for reader in found.readers[name]:
        module = model.get_submodule(reader)
        W, bias = matrix(module), bias_of(module)
        turned = W * gain @ T
        if found.centred:  # u' has no mean: its dimension carries the norm's bias, whatever reads it
            turned = turned - turned.mean(1, keepdim=True) + (W @ offset)[:, None] / k
        made = fill_(resized(module, len(W), k), turned, None if bias is None else bias.detach().double())
        made.training = module.training
        new.set_submodule(reader, made)


def _parameter(like: Tensor, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like), requires_grad=like.requires_grad)


def _tell(config: Any, old: int, new: int) -> None:
    """A config says so, where there is one: the width, the size of a head as it is, and that nothing is tied."""
    if config is None:
        return
    heads = getattr(config, "num_attention_heads", None)
    if getattr(config, "head_dim", 0) is None and heads:
        config.head_dim = old // heads
    for word in WIDTHS:
        if getattr(config, word, None) == old:
            setattr(config, word, new)
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False


def _scaled(norm: nn.Module) -> tuple[float, Tensor, Tensor]:
    """Epsilon, gain and bias of a norm."""
    weight, bias = cast(Tensor, norm.weight), getattr(norm, "bias", None)
    eps: Any = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None:  # of torch's RMSNorm: of the numbers' type
        eps = torch.finfo(weight.dtype).eps
    return float(eps), weight, bias if isinstance(bias, Tensor) else torch.zeros_like(weight)


def _normalized(norm: nn.Module, x: Tensor, centred: bool) -> Tensor:
    x = x - x.mean(-1, keepdim=True) if centred else x
    return x * (x.square().mean(-1, keepdim=True) + _scaled(norm)[0]).rsqrt()


def _level(d: int) -> Tensor:
    """(d, d - 1) orthonormal columns without mean."""
    first = torch.full((d, 1), d**-0.5, dtype=torch.float64)
    Q = torch.linalg.qr(torch.cat([first, torch.eye(d, dtype=torch.float64)[:, 1:]], 1))[0]
    return Q[:, 1:]


def _outputs(module: nn.Module) -> int:
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return matrix(module).shape[0] if isinstance(module, nn.Linear) or is_conv1d(module) else 0


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).double().norm()) <= AGREE * float(b.double().norm())

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
from netspectra.live.batches import call, main_output, selected
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.calibrate import layers, samples_in
from netspectra.verbs.compress.objective import token_mask
from netspectra.verbs.compress.sites import matrix

__all__ = ["Stream", "narrower", "stream_of", "width_of"]

AGREE = 1e-3  # relative difference of outputs under which a rotated model is the same
LEVELS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 1e3)  # of the ridge; the last is as good as no fit
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
    turned = _cut(model, found, basis @ turn @ basis.mT, {})
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

    Args:
        model: not changed.
        batches: what it is called with.
        width: dimensions of the stream that stay.
        select: which directions; ``random`` to compare with.
        refit: fit T (a ridge towards R^T, its strength by cross-validation); else R^T (to compare with).
        seed: of random directions.
        progress: told the share done.

    Raises:
        InputRefused: no stream that can be turned, or no such width.

    Cost: three passes over the data, d^2 multiplications a token and norm in each; d^3 once.
    """
    found = stream_of(model, batches[0])
    if not 1 + found.centred <= width <= found.width:
        raise InputRefused(f"stream={width}: the model's has {found.width} dimensions")
    C = _summed(model, found, batches, lambda u, x, norm: (u.mT @ u).double())
    progress(0.4)
    basis = _level(found.width) if found.centred else torch.eye(found.width, dtype=torch.float64)
    inner = width - found.centred
    if select == "random":
        kept = semi_orthogonal(basis.shape[1], inner, torch.Generator().manual_seed(seed))
    else:
        whole = torch.stack(list(C.values())).sum(0)
        kept = torch.linalg.eigh(basis.mT @ whole @ basis)[1].flip(1)[:, :inner]
    R = (basis @ kept).mT
    if found.centred:
        R = _level(width) @ R
    fits = {}
    if refit:
        narrow = R.float()

        def halves(u: Tensor, x: Tensor, norm: nn.Module) -> Tensor:
            v = _normalized(norm, x @ narrow.mT, found.centred)
            middle = (len(u) + 1) // 2  # rows are in the order of the samples
            parts = ((u[:middle], v[:middle]), (u[middle:], v[middle:]))
            return torch.stack([torch.cat([v.mT @ v, u.mT @ v]) for u, v in parts]).double()

        fits = {name: _fit(both, R) for name, both in _summed(model, found, batches, halves).items()}
    progress(1.0)
    return _cut(model, found, R, fits)


def _fit(moments: Tensor, R: Tensor) -> Tensor:
    """T (d, k) such that u is about T u': ridge regression towards a multiple of R^T.

        T = (B + l c R^T) (A + l I)^-1,    A = E[u' u'^T],  B = E[u u'^T],  c = tr(R B) / tr(A)

    l is what predicts either half of the samples best from the other; few tokens leave T near c R^T.

    Args:
        moments: (2, k + d, k), of each half of the samples the sums of u' u'^T and below them of u u'^T.
        R: (k, d).
    """
    k = len(R)
    whole, halves = moments.sum(0), [half for half in moments if float(half[:k].trace()) > 0]
    c = float((R @ whole[k:]).trace() / whole[:k].trace())
    errors = torch.zeros(len(LEVELS), dtype=moments.dtype)
    for mine, other in zip(halves, reversed(halves), strict=True):
        for place, T in enumerate(_ridge(mine, R, c, LEVELS)):
            errors[place] += ((T @ other[:k] - 2 * other[k:]) * T).sum() / other[:k].trace()
    return _ridge(whole, R, c, [LEVELS[int(errors.argmin())]])[0] if len(halves) == 2 else c * R.mT


def _ridge(moments: Tensor, R: Tensor, c: float, shares: Sequence[float]) -> list[Tensor]:
    """T at every level, given as a share of the mean variance."""
    k = len(R)
    values, vectors = torch.linalg.eigh(moments[:k])
    levels = [share * float(values.sum()) / k for share in shares]
    turned, prior = moments[k:] @ vectors, c * R.mT @ vectors
    return [(turned + level * prior) / (values.clamp_min(0) + level) @ vectors.mT for level in levels]


def _summed(
    model: nn.Module, found: Stream, batches: Sequence[Any], what: Callable[[Tensor, Tensor, nn.Module], Tensor]
) -> dict[str, Tensor]:
    """By norm the sum over tokens of what follows from its normalized input u (n, d) and its input x (n, d)."""
    sums: dict[str, Tensor] = {}
    now: Any = None

    def add(name: str) -> Callable[..., None]:
        def added(norm: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            keep = token_mask(name, x.shape[:-1], now)
            x = (x[keep] if keep is not None else x.reshape(-1, x.shape[-1])).detach().float().cpu()
            part = what(_normalized(norm, x, found.centred), x, norm)
            sums[name] = sums[name].add_(part) if name in sums else part

        return added

    hooks = [model.get_submodule(n).register_forward_pre_hook(add(n)) for n in found.readers]
    try:
        with untouched(model), torch.no_grad():
            for batch in batches:
                now = batch
                call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _cut(model: nn.Module, found: Stream, R: Tensor, fits: Mapping[str, Tensor]) -> nn.Module:
    """A copy whose stream is R x; readers see T u' for u, by default R^T u' times what keeps its size."""
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
    for name, readers in found.readers.items():
        norm = model.get_submodule(name)
        _, gain, offset = (t.detach().double().cpu() if isinstance(t, Tensor) else t for t in _scaled(norm))
        T = fits.get(name, R.mT * (found.width / k) ** 0.5)
        for reader in readers:
            module = model.get_submodule(reader)
            W, bias = matrix(module), bias_of(module)
            turned = W * gain @ T
            if found.centred:  # u' has no mean: its dimension carries the norm's bias, whatever reads it
                turned = turned - turned.mean(1, keepdim=True) + (W @ offset)[:, None] / k
            made = fill_(resized(module, len(W), k), turned, None if bias is None else bias.detach().double())
            new.set_submodule(reader, made)
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

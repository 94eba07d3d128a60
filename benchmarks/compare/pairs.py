"""Networks trained on scikit-learn's digits, and what is done to them: pairs whose lineage is known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]
Pair = tuple[str, str, str, State, State]  # network, what was done, true lineage, before, after
RANK = 3


def mlp(width: int = 96) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn(width: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)


def train(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float, seed: int, optimizer: type = torch.optim.Adam
) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    rule = optimizer([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        take = torch.randint(len(x), (64,), generator=g)
        rule.zero_grad()
        F.cross_entropy(model(x[take]), y[take]).backward()
        rule.step()
    return model.eval()


def state(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def each(held: State, change: Callable[[Tensor], Tensor], dims: int = 2) -> State:
    return {k: change(v) if v.is_floating_point() and v.dim() >= dims else v.clone() for k, v in held.items()}


def rounded(bits: int, groups: str) -> Callable[[Tensor], Tensor]:
    """Symmetric round-to-nearest with one scale a row, or one for all."""

    def change(W: Tensor) -> Tensor:
        flat = W.flatten(1)
        top = flat.abs().amax(1, keepdim=True) if groups == "row" else flat.abs().max()
        step = top / (2 ** (bits - 1) - 1)
        return ((flat / step).round() * step).reshape(W.shape)

    return change


def pruned(share: float) -> Callable[[Tensor], Tensor]:
    return lambda W: torch.where(W.abs() < W.abs().flatten().quantile(share), 0.0, W)


class LoRA(nn.Module):
    def __init__(self, W: Tensor, g: torch.Generator) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(RANK, W[0].numel(), generator=g) / W[0].numel() ** 0.5)
        self.B = nn.Parameter(torch.zeros(len(W), RANK))

    def forward(self, W: Tensor) -> Tensor:
        return W + (self.B @ self.A).reshape(W.shape)


def adapted(model: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int) -> nn.Module:
    """Trained through low-rank factors of every matrix and kernel, then merged."""
    tuned, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in tuned.parameters():
        parameter.requires_grad_(False)
    layers = [m for m in tuned.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        nn.utils.parametrize.register_parametrization(layer, "weight", LoRA(layer.weight, g))
    for module in tuned.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    train_mode = {m: m.training for m in tuned.modules()}
    train(tuned, x, y, steps, 3e-3, seed)
    assert not any(train_mode[m] for m in tuned.modules() if isinstance(m, nn.BatchNorm2d))
    for layer in layers:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")
    return tuned


def pairs(seed: int, steps: int) -> Iterator[Pair]:
    """Every kind of pair for both networks and one seed; new data are the images upside down."""
    x, y = digits()
    turned = x.reshape(-1, 8, 8).flip(1).reshape(-1, 64)
    for name, make in (("MLP", mlp), ("CNN", cnn)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = train(make(), x, y, steps, 2e-3, seed)
            torch.manual_seed(seed + 1000)
            other = train(make(), x, y, steps, 2e-3, seed + 1000)
            wider = train(make(48), x, y, 20, 2e-3, seed)
        held = state(model)
        half = each(held, lambda W: W.bfloat16(), 0)
        g = torch.Generator().manual_seed(seed)

        def tuned(
            count: int, rate: float, rule: type = torch.optim.Adam, start: nn.Module = model, data: Tensor = turned
        ) -> State:
            return state(train(copy.deepcopy(start).train(), data, y, count, rate, seed + 7, rule))

        def noisy(share: float, g: torch.Generator = g) -> Callable[[Tensor], Tensor]:
            return lambda W: W + share * W.std() * torch.randn(W.shape, generator=g)

        low = state(adapted(model, turned, y, steps // 2, seed))
        ours = (
            ("copy", "identical", state(model)),
            ("renamed", "identical", {f"module.{k}": v for k, v in held.items()}),
            ("bfloat16", "same-up-to-precision", half),
            ("float16 and back", "same-up-to-precision", each(held, lambda W: W.half().float(), 0)),
            ("int8 a row", "same-up-to-precision", each(held, rounded(8, "row"))),
            ("int8 a tensor", "same-up-to-precision", each(held, rounded(8, "all"))),
            ("int4 a row", "same-up-to-precision", each(held, rounded(4, "row"))),
            ("tuned 10 small steps", "fine-tuned", tuned(10, 1e-5)),
            ("tuned", "fine-tuned", tuned(steps // 2, 3e-4)),
            ("tuned hard", "fine-tuned", tuned(steps, 2e-3)),
            ("tuned, SGD", "fine-tuned", tuned(steps // 2, 1e-2, torch.optim.SGD)),
            ("tuned, one SGD step", "fine-tuned", tuned(1, 1e-2, torch.optim.SGD)),
            ("tuned, then int8", "fine-tuned", each(tuned(steps // 2, 3e-4), rounded(8, "row"))),
            ("LoRA merged", "low-rank-adapted", low),
            ("LoRA merged, bfloat16", "low-rank-adapted", each(low, lambda W: W.bfloat16(), 0)),
            ("pruned 50 %", "modified", each(held, pruned(0.5))),
            ("pruned 90 %", "modified", each(held, pruned(0.9))),
            ("noise 1 %", "modified", each(held, noisy(0.01))),
            ("noise 20 %", "modified", each(held, noisy(0.2))),
            ("scaled", "modified", each(held, lambda W: 1.01 * W)),
            (
                "hard: tuned 10 small steps, then bfloat16",
                "fine-tuned",
                each(tuned(10, 1e-5), lambda W: W.bfloat16(), 0),
            ),
            ("hard: tuned, then int4", "fine-tuned", each(tuned(steps // 2, 3e-4), rounded(4, "row"))),
            ("hard: LoRA merged, then int8", "low-rank-adapted", each(low, rounded(8, "row"))),
            ("hard: tuned, then pruned 50 %", "modified", each(tuned(steps // 2, 3e-4), pruned(0.5))),
            ("another seed", "unrelated", state(other)),
            ("another width", "different-architecture", state(wider)),
        )
        for what, truth, after in ours:
            yield name, what, truth, held, after

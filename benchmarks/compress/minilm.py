"""MiniLM: every method and form at the same size, in one run, in domain and out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import netspectra as ns
from benchmarks.compress.texts import addresses, topics
from benchmarks.demo.run import minilm
from netspectra.live.build import build
from netspectra.live.samples import text_batches, tokenizer
from netspectra.verbs.compress.allocate import Choice, Option, allocate, uniform
from netspectra.verbs.compress.decide import budget_of
from netspectra.verbs.compress.objective import pooled
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.replace import Replacement, tried
from netspectra.verbs.compress.speed import speed
from netspectra.verbs.compress.workshop import Workshop

CALIBRATION, TEST, TOKENS = 384, 120, 128
ENCODER = ("encoder.*",)


class Model:
    """MiniLM, its batches and the sentence embeddings of its tests."""

    def __init__(self, samples: int = CALIBRATION, tests: int = TEST) -> None:
        self.source = ns.open(minilm())
        self.module = build(self.source)
        self.words = tokenizer(self.source)
        texts = topics()
        self.calibration = self.batches(texts[:samples])
        self.tests = {
            "in": self.batches(texts[CALIBRATION : CALIBRATION + tests]),
            "out": self.batches(addresses()[:tests]),
        }
        self.embeddings = {name: self.embedded(self.module, some) for name, some in self.tests.items()}

    def batches(self, texts: Sequence[str], size: int = 32) -> list[Any]:
        """Token batches of texts of like lengths."""
        return text_batches(sorted(texts, key=len), self.words, self.module, size=size, longest=TOKENS)

    @torch.no_grad()
    def embedded(self, model: nn.Module, batches: Sequence[Any]) -> Tensor:
        """Sentence embeddings: mean over tokens, normalized."""
        return torch.cat([pooled(model(**batch).last_hidden_state, batch) for batch in batches])

    def cosines(self, model: nn.Module) -> dict[str, float]:
        """Mean cosine to the original's embeddings, in domain and out of it."""
        found = {}
        for name, batches in self.tests.items():
            found[name] = float((self.embedded(model, batches) * self.embeddings[name]).sum(-1).mean())
        return found


def only(shop: Workshop, accept: Callable[[Choice], bool]) -> Workshop:
    """The same workshop with fewer choices."""
    parts = [
        replace(
            part,
            choices={
                key: tuple(c for c in some if c.form == "dense" or accept(c)) for key, some in part.choices.items()
            },
            _hulls={},
        )
        for part in shop.parts
    ]
    return replace(shop, parts=parts)


def forms(*names: str) -> Callable[[Choice], bool]:
    return lambda choice: choice.form in names


def even(shop: Workshop, keep: float, *names: str) -> list[Option]:
    return uniform(shop.parts, keep, "parameters", forms(*names))


def best(shop: Workshop, *names: str) -> list[Option]:
    few = only(shop, forms(*names))
    return allocate(few.parts, budget_of(few))


@contextmanager
def told(what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    print(f"   {what}: {time.process_time() - started:.0f} CPU s", flush=True)


def parameters(options: Sequence[Option]) -> int:
    return sum(option.cost.parameters for option in options)


def measured(quick: bool = False) -> dict[str, Any]:
    """Cosines of every row of the table, of the embedding alone, and speed."""
    model = Model(64, 32) if quick else Model()
    keep, rows = 0.5, []
    base = CompressOptions(keep=keep, include=ENCODER)

    def row(name: str, options: Sequence[Option] | None, shop: Workshop, modules: Sequence[Replacement]) -> None:
        with tried(model.module, modules) as changed:
            found = {"name": name, **{f"cosine_{k}": v for k, v in model.cosines(changed).items()}}
        found["parameters"] = parameters(options) if options is not None else None
        rows.append(found)
        print("  ", found, flush=True)

    with told("calibration and planning"):
        plan, shop = compress(model.module, replace(base, centre=False), model.calibration)
    known = shop.calibration
    for method in ("plain", "fisher", "asvd", "whitened", "two_sided"):
        with told(method):
            other = replace(base, method=method, centre=False, shrink_inputs=1e-4 if method == "whitened" else 0.02)
            _, some = compress(model.module, other, model.calibration, calibration=known)
            options = even(some, keep, "factors")
            row(f"{method}, uniform", options, some, some.fit(options))
    with told("planning, centred"):
        plan, shop = compress(model.module, base, model.calibration, calibration=known)
    for name, options in (
        ("two_sided, global", best(shop, "factors")),
        ("two_sided, global, pivoted", best(shop, "pivoted")),
        ("neurons + pivoted attention", best(shop, "neurons", "pivoted")),
        ("all forms, chosen on held-out", list(shop.chosen)),
    ):
        row(name, options, shop, shop.fit(options))
    fast = speed(model.module, shop.fit(shop.chosen), full_batch(model))
    rounding = plan.held_out["rounding"]
    for spread in (0.2, 0.4):
        with told(f"spread {spread}"):
            _, wide = compress(model.module, replace(base, spread=spread), model.calibration)
            row(f"all forms, spread {spread}", wide.chosen, wide, wide.fit(wide.chosen))
    healed = replace(base, spread=0.4, refit=1, heal=20 if quick else 240, heal_rate=3e-4)
    with told("refit and heal"):
        started = time.process_time()
        made, wide = compress(model.module, healed, model.calibration)
        made.apply(build(model.source))
        seconds = time.process_time() - started
        row("all forms, spread 0.4, refit, healed", wide.chosen, wide, wide.finished or [])
    return {
        "rows": rows,
        "speed": fast,
        "rounding": rounding,
        "healing": {**made.finish, "cpu_seconds": seconds},
        "embedding": embedding(model),
        "frontier": list(plan.frontier),
    }


def full_batch(model: Model, size: int = 32) -> dict[str, Tensor]:
    """A batch of 32 x 128 tokens without padding."""
    ids = torch.randint(1000, 30000, (size, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def embedding(model: Model) -> dict[str, Any]:
    """The word embedding alone at one half: plain truncation, and weighed by token frequency."""
    found = {}
    table = ("embeddings.word_embeddings.weight",)
    for name, method in (("plain", "plain"), ("frequency weighted", "two_sided")):
        options = CompressOptions(keep=0.5, include=table, method=method)
        _, shop = compress(model.module, options, model.calibration)
        with tried(model.module, shop.fit(shop.chosen)) as changed:
            found[name] = model.cosines(changed)
    return found

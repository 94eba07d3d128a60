"""MiniLM: every method and form at the same size, in one run, in domain and out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
KEEP = 0.5
CHOSEN = "all forms, as the command chooses"
HALF = 0.2  # of the moments with tokens drawn anew: half of what is usual
STEPS, RATE = 120, 3e-4  # of healing: what five CPU minutes allow


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
    return allocate(few.parts, budget_of(few.options, few.parts))


@contextmanager
def told(what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    print(f"   {what}: {time.process_time() - started:.0f} CPU s", flush=True)


def parameters(options: Sequence[Option]) -> int:
    return sum(option.cost.parameters for option in options)


@dataclass(eq=False)
class Table:
    """Rows of cosines, printed as they come."""

    model: Model
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, options: Sequence[Option], modules: Sequence[Replacement]) -> None:
        """Measure one way to compress."""
        with tried(self.model.module, modules) as changed:
            cosines = {f"cosine_{where}": value for where, value in self.model.cosines(changed).items()}
        self.rows.append({"name": name, **cosines, "parameters": parameters(options)})
        print("  ", self.rows[-1], flush=True)


def base(**wanted: Any) -> CompressOptions:
    return CompressOptions(keep=KEEP, include=ENCODER, **wanted)


def methods(quick: bool = False) -> dict[str, Any]:
    """Every method with the same share everywhere, then allocated forms, without training; rounding beside them.

    All of them know the samples' moments alone.
    """
    model = Model(64, 32) if quick else Model()
    table, known = Table(model), None
    for method in ("two_sided", "plain", "fisher", "asvd", "whitened"):
        with told(method):
            ridge = 1e-4 if method == "whitened" else 0.02
            options = base(method=method, forms=("factors",), centre=False, shrink_inputs=ridge, spread=0.0)
            _, shop = compress(model.module, options, model.calibration, calibration=known)
            known = shop.calibration
            chosen = even(shop, KEEP, "factors")
            table.add(f"{method}, uniform", chosen, shop.fit(chosen))
    with told("centred"):
        plan, shop = compress(model.module, base(spread=0.0), model.calibration, calibration=known)
        for name, chosen in (
            ("two_sided, factors, global", best(shop, "factors")),
            ("two_sided, pivoted, global", best(shop, "pivoted")),
            ("neurons + pivoted attention", best(shop, "neurons", "pivoted")),
            ("all forms", list(shop.chosen)),
        ):
            table.add(name, chosen, shop.fit(chosen))
    return {"rows": table.rows, "rounding": plan.held_out["rounding"], "frontier": list(plan.frontier)}


def spread(quick: bool = False) -> dict[str, Any]:
    """The command's choice, a share of whose moments comes from samples with tokens drawn anew; refitted too."""
    model = Model(64, 32) if quick else Model()
    table = Table(model)
    for name, share in ((f"all forms, spread {HALF}", HALF), (CHOSEN, None)):
        with told(name):
            plan, shop = compress(model.module, base(spread=share, refit=1), model.calibration)
            table.add(name, shop.chosen, shop.fit(shop.chosen))
            plan.apply(build(model.source))
            table.add(f"{name}, refit", shop.chosen, shop.finished or [])
    return {"rows": table.rows}


def healing(quick: bool = False) -> dict[str, Any]:
    """The command's choice, refitted and distilled, and the CPU seconds of the distillation."""
    model = Model(64, 32) if quick else Model()
    table = Table(model)
    started = time.process_time()
    plan, shop = compress(model.module, base(refit=1, heal=8 if quick else STEPS, heal_rate=RATE), model.calibration)
    planned = time.process_time() - started
    table.add("all forms, not healed", shop.chosen, shop.fit(shop.chosen))
    started = time.process_time()
    plan.apply(build(model.source))
    seconds = time.process_time() - started
    table.add(f"all forms, refit, {STEPS} steps of healing", shop.chosen, shop.finished or [])
    return {"rows": table.rows, **plan.finish, "planning_cpu_seconds": planned, "cpu_seconds": seconds}


def faster(quick: bool = False) -> dict[str, Any]:
    """The whole model before and after, in turn, at a batch of 32 x 128: the command's plan, and one bound to time."""
    model = Model(64, 8) if quick else Model(128, 8)
    found, known = {}, None
    for name, options in (("as the command chooses", base()), ("never slower", base(never_slower=True))):
        with told(name):
            _, shop = compress(model.module, options, model.calibration, calibration=known)
            known = shop.calibration
            found[name] = speed(model.module, shop.fit(shop.chosen), full_batch(model), rounds=3 if quick else 9)
            print("  ", name, found[name], flush=True)
    return found


def full_batch(model: Model, size: int = 32) -> dict[str, Tensor]:
    """A batch of 32 x 128 tokens without padding."""
    ids = torch.randint(1000, 30000, (size, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def embedding(quick: bool = False) -> dict[str, Any]:
    """The word embedding alone at one half: plain truncation, and weighed by token frequency."""
    model, found = Model(64, 32) if quick else Model(), {}
    table = ("embeddings.word_embeddings.weight",)
    for name, method in (("plain", "plain"), ("frequency weighted", "two_sided")):
        options = CompressOptions(keep=KEEP, include=table, method=method)
        _, shop = compress(model.module, options, model.calibration)
        with tried(model.module, shop.fit(shop.chosen)) as changed:
            found[name] = model.cosines(changed)
    return found

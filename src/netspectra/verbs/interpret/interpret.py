"""The verb: from a checkpoint's weights to token lists that say how far they are to be believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import InputRefused
from netspectra.linalg.discovery import discovered_in, simes
from netspectra.verbs.interpret.anatomy import anatomy
from netspectra.verbs.interpret.circuits import KINDS, Circuit, Kind, circuits
from netspectra.verbs.interpret.effect import Effect
from netspectra.verbs.interpret.reading import Reader, Readings
from netspectra.verbs.interpret.result import Direction, Interpretation, TokenList
from netspectra.weight import Source

__all__ = ["InterpretOptions", "interpret"]


@dataclass(frozen=True)
class InterpretOptions:
    """What to read.

    Attributes:
        top: directions of each circuit, those of the largest singular values.
        words: tokens a list.
        layers: numbers of layers; None: all.
        kinds: of ov, qk, mlp_in, mlp_out.
        null: lists of random directions that calibrate; the smallest p-value is 1 / (null + 1).
        rate: false discovery rate of directions.
        heads: number of attention heads where nothing says it.
        removals: how many directions are removed to measure their effect, where a model can be run.
        seed: of the random directions.
    """

    top: int = 8
    words: int = 10
    layers: tuple[int, ...] | None = None
    kinds: tuple[Kind, ...] = ("ov", "qk", "mlp_in", "mlp_out")
    null: int = 20_000
    rate: float = 0.02
    heads: int | None = None
    removals: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.top < 1 or self.words < 2:
            raise InputRefused(f"at least 1 direction and 2 words, found top={self.top}, words={self.words}")
        if not 0 < self.rate < 1:
            raise InputRefused(f"the false discovery rate lies between 0 and 1, found {self.rate}")
        if self.null < 100:
            raise InputRefused(f"a null of {self.null} lists calibrates nothing: at least 100")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise InputRefused(f"kinds {unknown}: there are {', '.join(KINDS)}")


def interpret(
    source: Source,
    options: InterpretOptions = InterpretOptions(),
    *,
    words: Sequence[str] | None = None,
    effect: Effect | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Interpretation:
    """Read the singular directions of every head and MLP through the token tables; see ``netspectra.interpret``.

    Args:
        source: an opened checkpoint or module.
        options: what to read.
        words: text of every token id; None: ``#id``.
        effect: measures what removing directions does; None: not measured.
        notes: to be told with the result.
        progress: told what is done and its share.
    """
    found = anatomy(source, heads=options.heads)
    layers = [layer for layer in found.layers if options.layers is None or layer.number in options.layers]
    if not layers:
        raise InputRefused(f"{source.path}: has layers {found.layers[0].number} to {found.layers[-1].number}")
    made: list[Circuit] = []
    for place, layer in enumerate(layers):
        made += [c for c in circuits(found, layer, top=options.top) if c.kind in options.kinds]
        progress("decompose", (place + 1) / len(layers))
    if not made:
        raise InputRefused(f"{source.path}: no circuit of {', '.join(options.kinds)}: {'; '.join(found.notes)}")
    texts = words if words is not None and len(words) >= len(found.reads) else None
    left_out = None if texts is None else _left_out(texts, len(found.reads))
    settings: dict[str, Any] = {"words": options.words, "null": options.null, "left_out": left_out}
    reader = Reader(found.reads, seed=options.seed, **settings)
    same = found.writes is found.reads
    writer = reader if same else Reader(found.writes, seed=options.seed + 1, **settings)
    lists = _lists(made, reader, writer, options, texts, progress)
    effects: dict[tuple[int, int], float] = {}
    unit = ""
    if effect is not None:
        chosen = _chosen(made, lists, options.removals)
        numbers, unit = effect(found, [(made[c], i) for c, i in chosen])
        effects = dict(zip(chosen, numbers, strict=True))
    directions = [
        _direction(circuit, i, tuple(lists[place, i]), effects.get((place, i)))
        for place, circuit in enumerate(made)
        for i in range(len(circuit.svd.S))
    ]
    notes = (*found.notes, *notes)
    if words is not None and texts is None:
        notes = (*notes, f"the tokenizer knows {len(words)} tokens, the table has {len(found.reads)} rows: ids shown")
    count = sum(len(some) for some in lists.values())
    least = math.ceil(count / (options.rate * (options.null + 1)))
    if least > 1:
        limit = f"{count} lists against {options.null} random ones: at least {least} directions must stand out"
        notes = (*notes, f"{limit} before any is called coherent or sharp; a larger null lowers that")
    asked = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(options).items() if v is not None}
    return Interpretation(source.describe(), tuple(directions), asked, notes, unit)


Lists = dict[tuple[int, int], list[TokenList]]


def _lists(
    made: Sequence[Circuit],
    reader: Reader,
    writer: Reader,
    options: InterpretOptions,
    texts: Sequence[str] | None,
    progress: Callable[[str, float], None],
) -> Lists:
    """All token lists, judged together: the false discovery rate is of directions, over the whole interpretation."""
    rows: list[tuple[int, int, str, int, Readings, int]] = []
    p: list[tuple[np.ndarray, ...]] = []
    jobs = [(kind, side) for kind in KINDS for side in ("left", "right") if _has(kind, side)]
    for done, (kind, side) in enumerate(jobs):
        places = [place for place, c in enumerate(made) if c.kind == kind]
        if places:
            vectors = torch.cat([_vectors(made[place], side) for place in places])
            through = writer if side == "left" and kind != "qk" else reader
            readings = through.read(vectors)
            which = [(place, i) for place in places for i in range(len(made[place].svd.S))]
            for sign in (1, -1):
                start = 0 if sign > 0 else len(which)
                rows += [(*one, side, sign, readings, start + row) for row, one in enumerate(which)]
            p.append(through.p_values(readings))
        progress("read", (done + 1) / len(jobs))
    likeness, sharpness, both = (np.concatenate([one[i] for one in p]) for i in range(3))
    numbers: dict[tuple[int, int], int] = {}
    family = np.array([numbers.setdefault((place, i), len(numbers)) for place, i, *_ in rows])
    flags = [discovered_in(values, family, options.rate)[1] for values in (both, sharpness)]
    lists: Lists = {}
    for n, (place, i, side, sign, readings, row) in enumerate(rows):
        ids = tuple(int(t) for t in readings.tokens[row])
        lists.setdefault((place, i), []).append(
            TokenList(
                side,
                sign,
                ids,
                tuple(texts[t] if texts else f"#{t}" for t in ids),
                tuple(float(s) for s in readings.scores[row]),
                float(readings.likeness[row]),
                float(readings.sharpness[row]),
                float(likeness[n]),
                float(sharpness[n]),
                float(both[n]),
                *(bool(flag[n]) for flag in flags),
            )
        )
    return {key: sorted(some, key=lambda one: (-one.sign, one.side == "left")) for key, some in lists.items()}


def _has(kind: str, side: str) -> bool:
    return not (kind == "mlp_in" and side == "left") and not (kind == "mlp_out" and side == "right")


def _vectors(circuit: Circuit, side: str) -> Tensor:
    return circuit.svd.U.mT if side == "left" else circuit.svd.Vh


def _direction(circuit: Circuit, i: int, lists: tuple[TokenList, ...], effect: float | None) -> Direction:
    sigma, total = float(circuit.svd.S[i]), float(circuit.values.double().square().sum())
    return Direction(
        circuit.layer.name,
        circuit.layer.number,
        circuit.head,
        circuit.kind,
        i,
        sigma,
        sigma**2 / total if total else 0.0,
        float(circuit.turns[0][i]),
        float(circuit.turns[1][i]),
        lists,
        effect,
    )


def _chosen(made: Sequence[Circuit], lists: Lists, count: int) -> list[tuple[int, int]]:
    """Directions whose effect is measured: the most coherent ones, of equals the larger share of their circuit."""

    def rank(key: tuple[int, int]) -> tuple[float, float]:
        circuit = made[key[0]]
        share = float(circuit.svd.S[key[1]].double() ** 2 / circuit.values.double().square().sum().clamp_min(1e-300))
        return simes(np.array([one.p for one in lists[key]])), -share

    return sorted(sorted(lists), key=rank)[:count]


def _left_out(texts: Sequence[str], count: int) -> Tensor:
    """Tokens that no text ever used, by their names: they are alike because they were never trained."""
    return torch.tensor([text.startswith(("[unused", "<unused", "<|reserved")) for text in texts[:count]])

"""Interpretation: planted directions, random and rotated weights, real models, and what naive reading would claim.

In parts that are kept one by one (``python -m benchmarks.interpret.run planted``): planted, means, chance, rotated,
models.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

import netspectra as ns
from benchmarks.compress.smollm import smollm
from benchmarks.demo.run import minilm
from benchmarks.results import keep, table
from netspectra.linalg.orthogonal import semi_orthogonal
from netspectra.linalg.product import product_svd
from netspectra.live.vocabulary import vocabulary

HERE = Path(__file__).parent
HEADS, LAYERS = 9, 3  # layers of each strength
NULL = 20_000
SEEDS = (20, 21, 22, 23, 24)  # none of them was looked at while the statistic was chosen
STRENGTHS = (1.0, 2.0, 4.0)  # of the planted value, in the largest singular value of a head of noise
TOPICS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday weekend", "January February March April June July August",
    "red blue green yellow purple orange brown pink", "mother father sister brother daughter son uncle aunt",
    "one two three four five six seven eight", "dog cat horse cow sheep pig bird fish",
    "Germany France Italy Spain Japan China India Russia", "London Paris Berlin Tokyo Rome Madrid Moscow",
    "hand foot head arm leg eye ear nose", "north south east west northern southern eastern western",
    "bread milk cheese meat rice fruit soup cake", "doctor nurse teacher lawyer engineer farmer soldier",
    "gold silver iron copper steel bronze metal", "rain snow wind storm cloud sun weather",
    "he she they we him her them us", "computer software internet data program code file",
)  # fmt: skip


def topics(rows: Tensor, words: Sequence[str], how: str) -> dict[str, tuple[Tensor, set[int]]]:
    """Directions of sets of words (those that are one token), and their tokens.

    ``separating`` (C + l I)^-1 (mean of the words - mean), what tells them from all other tokens best, with C the
    table's covariance and l its mean variance; ``mean``: the mean of the words less that of all.
    """
    ids = {word: place for place, word in enumerate(words)}
    centred = (rows - rows.mean(0)).double()
    C = centred.mT @ centred / len(centred)
    level = C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
    found = {}
    for line in TOPICS:
        tokens = [ids[f" {word}"] for word in line.split() if f" {word}" in ids]
        if len(tokens) >= 5:
            mean = centred[tokens].mean(0)
            direction = torch.linalg.solve(C + level, mean) if how == "separating" else mean
            found[line.split()[0]] = ((direction / direction.norm()).float(), set(tokens))
    return found


def noise(table_: Tensor, draw: torch.Generator, layers: int = LAYERS) -> dict[str, Tensor]:
    """A decoder of random weights around a real token table."""
    d = table_.shape[1]
    found = {"model.embed_tokens.weight": table_}
    for layer in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            W = torch.randn(d, d, generator=draw) / d**0.5
            found[f"model.layers.{layer}.self_attn.{name}.weight"] = W
    return found


def planted(table_: Tensor, words: Sequence[str], how: str, strengths: Sequence[float], seed: int) -> Any:
    """Nearly half of the heads get a triplet that reads one topic and writes another: what is called coherent there.

    Three layers of each strength in one model. A direction that is called coherent is right if it is the one of its
    head that is nearest to what was planted there, on the side where it is nearer: at strength 1 noise turns it by 45
    degrees and more, which is counted apart (cosine^2 below 1/2). Others with a cosine^2 above 1/10 are neighbours, the
    rest is wrong. ``says``: a coherent list of it holds at least five words of its topic. A topic is readable if its
    own direction does.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    weights = noise(table_, draw, LAYERS * len(strengths))
    unit = table_ / table_.norm(dim=1, keepdim=True)
    reads, writes = topics(unit, words, how), topics(table_, words, how)
    readable = [
        {name for name, (u, own) in some.items() if len(own & set((rows @ u).topk(10).indices.tolist())) >= 5}
        for some, rows in ((reads, unit), (writes, table_))
    ]
    names, where = list(reads), {}
    d = table_.shape[1]
    each = d // HEADS
    top = 2.0 * (1 + (each / d) ** 0.5) * (each / d) ** 0.5  # about the largest singular value of a head of noise
    for layer in range(LAYERS * len(strengths)):
        for head in torch.randperm(HEADS, generator=draw)[: HEADS // 2].tolist():
            read, write = (names[i] for i in torch.randperm(len(names), generator=draw)[:2].tolist())
            inner = torch.randn(each, generator=draw)
            inner, rows = inner / inner.norm(), slice(head * each, (head + 1) * each)
            size = (strengths[layer // LAYERS] * top) ** 0.5
            V, O = (weights[f"model.layers.{layer}.self_attn.{n}_proj.weight"] for n in "vo")  # noqa: E741
            V[rows] += size * torch.outer(inner, reads[read][0])
            O[:, rows] += size * torch.outer(writes[write][0], inner)
            where[layer, head] = (read, write)
    found = ns.interpret(weights, heads=HEADS, tokens=list(words), null=NULL, seed=seed)
    legible = {place for place, (read, write) in where.items() if read in readable[0] or write in readable[1]}
    rows = []
    for place, strength in enumerate(strengths):
        mine = range(LAYERS * place, LAYERS * (place + 1))
        row: dict[str, Any] = {"how": how, "strength": strength, "seed": seed, "wrong": []}
        row |= dict.fromkeys(("right", "turned", "says", "neighbours"), 0)
        row["directions"] = sum(one.number in mine for one in found)
        seen = set()
        called = [one for one in found.coherent if one.number in mine]
        for one in called:
            topic = where.get((one.number, one.head)) if one.kind == "ov" else None
            near = None if topic is None else _near(weights, one, reads[topic[0]][0], writes[topic[1]][0], each)
            if near is not None and topic is not None and int(near.argmax()) == one.index:
                sets = {"right": reads[topic[0]][1], "left": writes[topic[1]][1]}
                row["right"] += 1
                row["turned"] += float(near[one.index]) < 0.5
                row["says"] += any(e.coherent and len(sets[e.side] & set(e.tokens)) >= 5 for e in one.lists)
                seen.add((one.number, one.head))
            elif near is not None and float(near[one.index]) > 0.1:
                row["neighbours"] += 1
            else:
                lists = [end.words for end in one.lists if end.coherent]
                row["wrong"].append({"direction": one.name, "p": one.p, "words": lists})
        here = {key for key in where if key[0] in mine}
        row |= {"planted": len(here), "called": len(called), "found": len(seen)}
        rows.append(row | {"readable": len(legible & here), "found of readable": len(seen & legible)})
    return rows


def _near(weights: Mapping[str, Tensor], one: Any, read: Tensor, write: Tensor, each: int) -> Tensor:
    """Of every direction of this one's head the larger squared cosine of its two vectors with what was planted."""
    rows = slice(one.head * each, (one.head + 1) * each)
    V, O = (weights[f"model.layers.{one.number}.self_attn.{n}_proj.weight"].double() for n in "vo")  # noqa: E741
    svd = product_svd(O[:, rows], V[rows])
    return torch.maximum((svd.U.mT @ write.double()).square(), (svd.Vh @ read.double()).square())


def several(table_: Tensor, words: Sequence[str], how: str, strengths: Sequence[float], quick: bool) -> Any:
    return [row for seed in ((99,) if quick else SEEDS) for row in planted(table_, words, how, strengths, seed)]


def chance(table_: Tensor, words: Sequence[str], seed: int, null: int = NULL) -> dict[str, float]:
    """Random weights: the share called coherent, and what p-values would claim without a false discovery rate."""
    weights = noise(table_, torch.Generator().manual_seed(2000 + seed))
    found = ns.interpret(weights, heads=HEADS, tokens=list(words), null=null, seed=seed)
    lists = [one for d in found for one in d.lists]
    return {
        "coherent": len(found.coherent) / len(found),
        "sharp": sum(d.sharp for d in found) / len(found),
        "lists with p of likeness below .05": sum(one.p_likeness <= 0.05 for one in lists) / len(lists),
        "lists with p of both below .05": sum(one.p <= 0.05 for one in lists) / len(lists),
        "directions with p below .05": sum(d.p <= 0.05 for d in found) / len(found),
        "directions with a list below .05": sum(min(e.p for e in d.lists) <= 0.05 for d in found) / len(found),
    }


def rotated(path: Path, null: int, layers: Sequence[int]) -> dict[str, Any]:
    """A real model's own head weights, turned at random: as rotated, so random."""
    source = ns.open(path)
    words, _ = vocabulary(source)
    draw = torch.Generator().manual_seed(7)
    found: dict[str, Tensor] = {}
    for weight in source:
        if weight.kind == "embedding":
            found[weight.name] = weight.operator().dense().float()  # type: ignore[attr-defined]
        elif any(f"blk.{n}." in weight.name for n in layers) and "attn" in weight.name:
            W = weight.operator().dense().float()  # type: ignore[attr-defined]
            m, n = W.shape
            writes = "output" in weight.name
            turn = semi_orthogonal(*((m, m) if writes else (n, n)), draw).float()
            found[weight.name] = turn @ W if writes else W @ turn
    opened = replace(ns.open(found), config=source.config)
    read = ns.interpret(opened, tokens=words, null=null, kinds=("ov", "qk"))
    real = ns.interpret(source, tokens=words, null=null, kinds=("ov", "qk"), layers=tuple(layers))
    return {"rotated": read.counts, "real": real.counts, "layers": list(layers)}


def whole(path: Path, null: int) -> dict[str, Any]:
    started = time.process_time()
    found = ns.interpret(path, null=null)
    return {
        "cpu_seconds": time.process_time() - started,
        "counts": found.counts,
    }


def page(data: Mapping[str, Any]) -> str:
    parts = []
    for part, title in (
        ("planted", "that separate a topic from all other tokens"),
        ("means", "that are means of words"),
    ):
        if part in data:
            parts.append(f"## Planted directions {title}, SmolLM2's token table\n\n" + _pooled(data[part]))
    if "chance" in data:
        rows = [[name, *(f"{c[name]:.2%}" for c in data["chance"])] for name in data["chance"][0]]
        head = ["share", *(f"seed {seed}" for seed in range(len(data["chance"])))]
        parts.append("## Random weights, SmolLM2's token table\n\n" + table(head, rows))
    if "rotated" in data:
        counts = [
            [what, kind, c["coherent"], c["sharp"], c["directions"]]
            for what in ("rotated", "real")
            for kind, c in data["rotated"][what].items()
        ]
        layers = ", ".join(map(str, data["rotated"]["layers"]))
        parts.append(
            f"## SmolLM2, layers {layers}: weights turned at random, and as they are\n\n"
            + table(["weights", "circuit", "coherent", "sharp", "of"], counts)
        )
    if "models" in data:
        counts = [
            [name, f"{r['cpu_seconds']:.0f}", kind, c["coherent"], c["both"], c["sharp"], c["directions"]]
            for name, r in data["models"].items()
            for kind, c in r["counts"].items()
        ]
        head = ["model", "CPU s", "circuit", "coherent", "and separable", "sharp", "of"]
        parts.append("## Real models\n\n" + table(head, counts))
    return "\n\n".join(parts)


def _pooled(found: Sequence[Mapping[str, Any]]) -> str:
    """By strength and all together; counts are added up over the seeds."""
    strengths = list(dict.fromkeys(row["strength"] for row in found))
    rows = []
    for strength in [*strengths, None] if len(strengths) > 1 else strengths:
        some = [row for row in found if strength in (None, row["strength"])]
        total = {key: sum(row[key] for row in some) for key in COUNTS}
        wrong = sum(len(row["wrong"]) for row in some)
        kinds = [_share(total[a], total[b]) for a, b in SHARES]
        rows.append(
            [
                "all" if strength is None else f"{strength:g}",
                *kinds,
                total["says"],
                total["turned"],
                total["neighbours"],
                wrong,
            ]
        )
    seeds = len({row["seed"] for row in found})
    head = ["planted value / largest of noise", "precision", "recall", "recall of the readable"]
    head += ["say their topic", "turned", "neighbours", "wrong"]
    note = (
        f"{seeds} seeds, counts added up; in brackets 95 % intervals (Clopper & Pearson). Readable: the planted "
        "direction itself, without noise, lists at least five words of its topic in ten, on one side at least. "
        "Turned: of the right ones, those that noise has turned by more than 45 degrees on both sides."
    )
    return f"{table(head, rows)}\n\n{note}"


COUNTS = ("planted", "readable", "found", "found of readable", "called", "right", "says", "turned", "neighbours")
SHARES = (("right", "called"), ("found", "planted"), ("found of readable", "readable"))


def _share(part: int, whole: int) -> str:
    if not whole:
        return "0 of 0"
    low, high = binomtest(part, whole).proportion_ci()
    return f"{part / whole:.3f} = {part} of {whole} ({low:.3f} .. {high:.3f})"


def _tokens() -> tuple[Tensor, list[str]]:
    source = ns.open(smollm())
    words, why = vocabulary(source)
    if words is None:
        raise SystemExit(why)
    return next(w for w in source if w.kind == "embedding").operator().dense().float(), words  # type: ignore[attr-defined]


PARTS = {
    "planted": lambda quick: several(*_tokens(), "separating", STRENGTHS, quick),
    "means": lambda quick: several(*_tokens(), "mean", (2.0,), quick),
    "chance": lambda quick: [chance(*_tokens(), seed) for seed in ((0,) if quick else range(5))],
    "rotated": lambda quick: rotated(smollm(), NULL, (27,) if quick else (0, 14, 27)),
    "models": lambda quick: {
        "MiniLM": whole(minilm(), NULL),
        **({} if quick else {"SmolLM2-135M": whole(smollm(), NULL)}),
    },
}


def main(quick: bool = False, only: tuple[str, ...] = ()) -> None:
    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() and not quick else {}
    known = {name: found for name, found in known.items() if name in PARTS}
    for name, part in PARTS.items():
        if not only or name in only:
            known[name] = part(quick)
            if not quick:
                keep(HERE, "Directions as token lists", known, page(known))
    if quick:
        print(page(known))


if __name__ == "__main__":
    main("--quick" in sys.argv, tuple(a for a in sys.argv[1:] if a in PARTS))

"""Interpretation: planted directions, random and rotated weights, real models, and what naive reading would claim."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import netspectra as ns
from benchmarks.compress.smollm import smollm
from benchmarks.demo.run import minilm
from benchmarks.results import keep, table
from netspectra.linalg.orthogonal import semi_orthogonal
from netspectra.live.vocabulary import vocabulary

HERE = Path(__file__).parent
HEADS, LAYERS = 9, 3
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


def topics(table_: Tensor, words: Sequence[str]) -> dict[str, tuple[Tensor, set[int]]]:
    """Directions of sets of words (those that are one token), and their tokens."""
    ids = {word: place for place, word in enumerate(words)}
    centred = table_ / table_.norm(dim=1, keepdim=True)
    centred = centred - centred.mean(0)
    found = {}
    for line in TOPICS:
        tokens = [ids[f" {word}"] for word in line.split() if f" {word}" in ids]
        if len(tokens) >= 5:
            direction = centred[tokens].mean(0)
            found[line.split()[0]] = (direction / direction.norm(), set(tokens))
    return found


def noise(table_: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """A decoder of random weights around a real token table."""
    d = table_.shape[1]
    found = {"model.embed_tokens.weight": table_}
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            W = torch.randn(d, d, generator=draw) / d**0.5
            found[f"model.layers.{layer}.self_attn.{name}.weight"] = W
    return found


def planted(table_: Tensor, words: Sequence[str], strength: float, seed: int, null: int) -> dict[str, Any]:
    """Half of the heads get a triplet that reads one topic and writes another: precision and recall of `coherent`."""
    draw = torch.Generator().manual_seed(1000 + seed)
    weights, sets = noise(table_, draw), topics(table_, words)
    names, where = list(sets), set()
    d = table_.shape[1]
    each = d // HEADS
    top = 2.0 * (1 + (each / d) ** 0.5) * (each / d) ** 0.5  # about the largest singular value of a head of noise
    for layer in range(LAYERS):
        for head in torch.randperm(HEADS, generator=draw)[: HEADS // 2].tolist():
            read, write = (names[i] for i in torch.randperm(len(names), generator=draw)[:2].tolist())
            inner = torch.randn(each, generator=draw)
            inner, rows = inner / inner.norm(), slice(head * each, (head + 1) * each)
            size = (strength * top) ** 0.5 + 0.5
            V, O = (weights[f"model.layers.{layer}.self_attn.{n}_proj.weight"] for n in "vo")  # noqa: E741
            V[rows] += size * torch.outer(inner, sets[read][0])
            O[:, rows] += size * torch.outer(sets[write][0], inner)
            where.add((layer, head))
    found = ns.interpret(weights, heads=HEADS, tokens=list(words), null=null, seed=seed)
    flagged = [(d.number, d.head, d.kind, d.index) for d in found.coherent]
    right = [one for one in flagged if one[:2] in where and one[2:] == ("ov", 0)]
    return {
        "strength": strength,
        "flagged": len(flagged),
        "precision": len(right) / max(len(flagged), 1),
        "recall": len({one[:2] for one in right}) / len(where),
        "directions": len(found),
    }


def chance(table_: Tensor, words: Sequence[str], seed: int, null: int) -> dict[str, float]:
    """Random weights: the share called coherent, and what p-values would claim without a false discovery rate."""
    weights = noise(table_, torch.Generator().manual_seed(2000 + seed))
    found = ns.interpret(weights, heads=HEADS, tokens=list(words), null=null, seed=seed)
    lists = [one for d in found for one in d.lists]
    return {
        "coherent": len(found.coherent) / len(found),
        "sharp": sum(d.sharp for d in found) / len(found),
        "p below .05": sum(one.p_likeness <= 0.05 for one in lists) / len(lists),
        "directions with p below .05": sum(d.p <= 0.05 for d in found) / len(found),
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
    rows = [
        [f"{r['strength']:g}", f"{r['precision']:.3f}", f"{r['recall']:.3f}", r["flagged"], r["directions"]]
        for r in data["planted"]
    ]
    head = ["planted value / largest of noise", "precision", "recall", "called coherent", "of"]
    parts = ["## Planted directions, SmolLM2's token table\n\n" + table(head, rows)]
    rows = [[name, *(f"{c[name]:.2%}" for c in data["chance"])] for name in data["chance"][0]]
    head = ["share", *(f"seed {seed}" for seed in range(len(data["chance"])))]
    parts.append("## Random weights, SmolLM2's token table\n\n" + table(head, rows))
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
    counts = [
        [name, f"{r['cpu_seconds']:.0f}", kind, c["coherent"], c["both"], c["sharp"], c["directions"]]
        for name, r in data["models"].items()
        for kind, c in r["counts"].items()
    ]
    head = ["model", "CPU s", "circuit", "coherent", "and separable", "sharp", "of"]
    parts.append("## Real models\n\n" + table(head, counts))
    return "\n\n".join(parts)


def main(quick: bool = False) -> None:
    source = ns.open(smollm())
    words, _ = vocabulary(source)
    assert words is not None
    table_ = next(w for w in source if w.kind == "embedding").operator().dense().float()  # type: ignore[attr-defined]
    null = 10_000  # with fewer no list of so many could be called coherent
    seeds = (0,) if quick else (0, 1)
    data: dict[str, Any] = {
        "planted": [planted(table_, words, s, 0, null) for s in (STRENGTHS[-1:] if quick else STRENGTHS)],
        "chance": [chance(table_, words, seed, null) for seed in seeds],
        "rotated": rotated(smollm(), null, (27,) if quick else (0, 14, 27)),
        "models": {"MiniLM": whole(minilm(), null)} | ({} if quick else {"SmolLM2-135M": whole(smollm(), null)}),
    }
    if quick:
        print(page(data))
    else:
        keep(HERE, "Directions as token lists", data, page(data))


if __name__ == "__main__":
    main()

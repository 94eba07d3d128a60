"""Distillation: students that start from their teacher against random init, random neurons and layer skipping.

In parts that are kept one by one (``python -m benchmarks.distill.run mlp``): mlp, cnn, depth, width,
stream, steps.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.distill import characters, digits, minilm, smollm
from benchmarks.results import keep, table

HERE = Path(__file__).parent
PARTS = {
    "mlp": lambda quick: digits.measured("mlp", quick),
    "cnn": lambda quick: digits.measured("cnn", quick),
    "depth": minilm.depth,
    "width": minilm.width,
    "stream": smollm.stream,
    "steps": characters.steps,
}


def _spread(row: Mapping[str, Any]) -> list[str]:
    return [f"{m:.3f} ({a:.3f} .. {b:.3f})" for m, a, b in zip(row["median"], row["low"], row["high"], strict=True)]


def _digits(title: str, data: Mapping[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        rows.append([f"{row['width']:.1%}", row["start"], *_spread(row)])
    head = ["width kept", "start", *(f"step {step}" for step in data["rows"][0]["steps"])]
    marks = [
        [
            f"{mark['width']:.1%}",
            ", ".join(map(str, mark["steps needed"])),
            mark["of"],
            *(f"{100 * lead:+.1f}" for lead in mark["lead at step 0"].values()),
        ]
        for mark in data["marks"]
    ]
    second = ["width kept", "steps to random init's last accuracy, a seed", "of", "points above random neurons, cut",
              "above random neurons, refitted", "above pivoted QR"]  # fmt: skip
    teacher = statistics.median(data["teacher"])
    first = data["ranks"][0]
    ranks = ", ".join(f"{name}: {value:.0f}" for name, value in first["ranks"].items())
    used = ", ".join(f"{name}: {value:.0f}" for name, value in first["used k90"].items())
    return (
        f"## {title}\n\nTeacher's accuracy {teacher:.3f}; effective rank of the layers' inputs {ranks}; directions "
        f"that hold 90 % of their action {used}. Accuracy on 497 test images, median and range over "
        f"{len(data['teacher'])} seeds (teacher and student).\n\n{table(head, rows)}\n\n{table(second, marks)}"
    )


def page(data: Mapping[str, Any]) -> str:
    parts = []
    if "mlp" in data:
        parts.append(_digits("Digits, MLP 64-256-256-10", data["mlp"]))
    if "cnn" in data:
        parts.append(_digits("Digits, CNN with batch norm", data["cnn"]))
    if "depth" in data:
        found = data["depth"]
        rows = [
            [r["start"], f"{r['before']['cosine']:.3f}", f"{r['after']['cosine']:.3f}", f"{r['cpu_seconds']:.0f}"]
            for r in found["rows"]
        ]
        parts.append(
            f"## MiniLM to three of six layers\n\nCosine of the sentence embedding with the teacher's on held-out "
            f"text, before and after {found['steps']} steps of the same distillation. Chosen layers "
            f"{found['choice']['layers']} ({found['choice']['cpu_seconds']:.0f} CPU s to choose).\n\n"
            + table(["start", "before", "after", "CPU s of training"], rows)
        )
    if "width" in data:
        rows = [
            [r["what"], r["start"], " ".join(f"{c:.3f}" for c in r["cosine"]), f"{r['cpu_seconds']:.0f}"]
            for r in data["width"]["rows"]
        ]
        parts.append(
            "## MiniLM, a quarter of the neurons or half of the heads, no training\n\n"
            + table(["what", "start", "cosine (random: a seed each)", "CPU s"], rows)
        )
    if "stream" in data:
        found = data["stream"]
        rows = [
            [r["stream"], r["start"], f"{r['perplexity']:.1f}", f"{r['agreement']:.3f}", f"{r['cpu_seconds']:.0f}"]
            for r in found["rows"]
        ]
        parts.append(
            f"## SmolLM2-135M, a residual stream of fewer than {found['width']} dimensions, no training\n\n"
            f"Held-out text; perplexity of the teacher {found['before']:.1f}.\n\n"
            + table(["stream", "start", "perplexity", "same likeliest token", "CPU s"], rows)
        )
    if "steps" in data:
        found = data["steps"]
        rows = [[row["stream"], row["start"], *_spread(row), f"{row['cpu_seconds']:.0f}"] for row in found["rows"]]
        head = ["stream", "start", *(f"step {step}" for step in found["steps"]), "CPU s of the start"]
        parts.append(
            f"## A character-level Transformer, a residual stream of fewer than {found['width']} dimensions\n\n"
            f"Trained here on State of the Union addresses; teacher {found['before']:.3f} nats a character. Students "
            "on held-out text along the same distillation, in nats too, median and range over seeds.\n\n"
            + table(head, rows)
        )
    return "\n\n".join(parts)


def main(quick: bool = False, only: tuple[str, ...] = ()) -> None:
    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() and not quick else {}
    known.pop("environment", None)
    for name, part in PARTS.items():
        if not only or name in only:
            known[name] = part(quick)
            if not quick:
                keep(HERE, "Students that start from their teacher", known, page(known))
    if quick:
        print(page(known))


if __name__ == "__main__":
    main("--quick" in sys.argv, tuple(a for a in sys.argv[1:] if a in PARTS))

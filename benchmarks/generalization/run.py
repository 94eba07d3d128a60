"""Does it predict? Families of small networks on real data: what of their spectra goes with the generalization gap."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.generalization.families import families
from benchmarks.generalization.findings import by_part, correct, holding, levels, predictors, sentences, unseen
from benchmarks.generalization.numbers import table
from benchmarks.generalization.page import (
    axis_table,
    beyond_table,
    constant,
    held_lines,
    part_table,
    picture,
    predictor_table,
    sentence_table,
    unseen_table,
)
from benchmarks.generalization.train import Grid
from benchmarks.results import keep
from netspectra.linalg.threads import threads

HERE = Path(__file__).parent
KEPT = HERE / "networks.jsonl"  # every network as it comes; a second start goes on from it
QUICK = Grid(
    width=(48,),
    depth=(2,),
    optimizer=("adam",),
    rate=("low", "high"),
    decay=("none", "some"),
    noise=(0.0, 0.3),
    steps=60,
)
SHOWN = (
    "train_loss",
    "log_spectral_product",
    "log_frobenius_product",
    "log_spectral_complexity",
    "sharpness",
    "spectral_norm",
    "mp_sigma",
    "alpha",
    "hill_alpha",
    "alpha_hat",
    "stable_rank",
    "flatness",
    "spread",
    "share_of_first",
    "spikes",
    "mp_distance",
)

TEXT = """
{networks} networks in two families, trained by this benchmark: scikit-learn's digits ({digits} networks) and the next
character of Python's own manual ({manual} networks). Axes: width 64 or 160, 2 or 4 hidden layers, SGD or Adam, two
learning rates, weight decay or none, 0 / 20 / 40 % label noise, few or many examples, two seeds. The gap is training
accuracy minus test accuracy under the same label noise; test accuracy is on clean labels. Metrics are means over the
matrices but the classifier's (logarithms of sizes).

**Ψ** is Kendall's correlation between networks that differ in *one* hyper-parameter, averaged over the eight
(Jiang et al. 2019, arXiv 1912.02178): it cannot be won by telling large networks from small ones. **ρ** is Spearman's
over all networks. Brackets are 95 % bootstrap intervals over networks, * is below 5 % after Holm's correction over all
predictors, targets and data sets.

![Psi of every predictor](psi.svg)

## The families

{levels}

## What holds in both

Predictors of the gap whose Ψ has one sign in both data sets, stands after Holm's correction and is at least 0.2:

{held}

## The four sentences

Written down before any correlation was computed (`sentences.py`). The push ratio is how far the logits of a test input
move when the input of a layer is moved along the leading right singular vector, over the same in a random direction.
The numbers are Ψ.

{sentences}

A push along the leading direction moves the logits {push}.

## Every predictor

*Size* is what grows with the weights (norms, edges, alpha-hat); *shape* is what does not (ranks, exponents, spikes).

{predictors}

Unknown or the same in all networks, and so left out: {left_out}.

## By the place of the matrix

Ψ with the gap of the first matrix alone, of those between hidden layers, and of the classifier; only metrics that stand
after Holm's correction in both data sets:

{parts}

## Within one hyper-parameter

Kendall's correlation with the gap among networks that differ in that alone (digits / manual). A Ψ near 0 can hide
opposite signs.

{axes}

## Beyond what is known anyway

Partial rank correlation with the gap, given every hyper-parameter and the training loss and accuracy; only rows where
one of the two stands after Holm's correction:

{beyond}

## Settings that were not seen

Share of the variance of the ranks explained by ridge regression, eight folds over the settings. What the spectrum adds
is the difference between a row and the same row with it:

{unseen}

## What this does not say

Small multilayer perceptrons, two data sets, {steps} steps each, one activation, no normalization layers and no
convolutions. Alpha needs 20 values in its tail, and with matrices of 64 to 160 values it has wide intervals
({alpha}). The claims of the literature are about large, well-trained models of one family; they are neither
proved nor refuted there by this.
"""


def level_lines(found: dict[str, Any]) -> str:
    lines = []
    for task, one in found.items():
        q, again = one["quantiles"], one["seed_again"].get("gap", {}).get("value")
        repeat = (
            ""
            if again is None
            else f"; the gap of the second seed has a rank correlation of {again:.2f} with the first"
        )
        lines.append(
            f"- {task}: {one['networks']} networks ({one['diverged']} more diverged and are left out), "
            f"gap {q['gap'][0]:.2f} ... {q['gap'][4]:.2f} (median {q['gap'][2]:.2f}), "
            f"test accuracy {q['test_accuracy'][0]:.2f} ... {q['test_accuracy'][4]:.2f} "
            f"(median {q['test_accuracy'][2]:.2f}), "
            f"training accuracy {q['train_accuracy'][0]:.2f} ... {q['train_accuracy'][4]:.2f}{repeat}."
        )
    return "\n".join(lines)


def push_line(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{one['push_ratio']['quantiles'][1]:.1f} times as far as a random one on {task} (5 to 95 %: "
        f"{one['push_ratio']['quantiles'][0]:.1f} ... {one['push_ratio']['quantiles'][2]:.1f}; more than 1 in "
        f"{one['push_ratio']['above_1']:.0%} of {one['push_ratio']['layers']} layers)"
        for task, one in found.items()
    )


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["predictor"] == other["predictor"]


def page(data: dict[str, Any], steps: int) -> str:
    tasks = list(data["predictors"])
    gone = [
        row["predictor"]
        for row in data["predictors"][tasks[0]]
        if constant({task: other for task in tasks for other in data["predictors"][task] if same(other, row)})
    ]
    alpha = ", ".join(
        f"{one['alpha_of_layers']['known']} of {one['alpha_of_layers']['layers']} matrices have one on {task}"
        for task, one in data["levels"].items()
    )
    return TEXT.strip().format(
        networks=sum(one["networks"] for one in data["levels"].values()),
        **{task: one["networks"] for task, one in data["levels"].items()},
        levels=level_lines(data["levels"]),
        sentences=sentence_table(data["sentences"], tasks),
        push=push_line(data["levels"]),
        held=held_lines(data["held"]),
        predictors=predictor_table(data["predictors"]),
        left_out=", ".join(gone) or "none",
        parts=part_table(data["parts"]),
        axes=axis_table(data["predictors"], SHOWN),
        beyond=beyond_table(data["predictors"]),
        unseen=unseen_table(data["unseen"]),
        alpha=alpha,
        steps=steps,
    )


def main(quick: bool = False) -> None:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    grid = QUICK if quick else Grid()
    with threads(1):
        rows = families(grid, None if quick else KEPT, tell)
        tables = {name: table(some) for name, some in rows.items()}
        data: dict[str, Any] = {
            "levels": {name: levels(one) | {"diverged": grid.count - len(one)} for name, one in tables.items()},
            "sentences": sentences(tables),
            "predictors": {name: predictors(one) for name, one in tables.items()},
            "parts": by_part(rows),
            "unseen": {name: unseen(one) for name, one in tables.items()},
        }
    correct(data["predictors"])
    data["held"] = holding(data["predictors"])
    text = page(data, grid.steps)
    if quick:
        print(text)
    else:
        (HERE / "psi.svg").write_text(picture(data["predictors"]))
        keep(HERE, "Does it predict?", data, text)


if __name__ == "__main__":
    main()

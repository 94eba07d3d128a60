"""From tables of networks to findings: every predictor, the four sentences, and prediction on unseen settings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.generalization.association import (
    beyond,
    correlation,
    granulated,
    holm,
    kendall,
    pairs,
    spearman,
)
from benchmarks.generalization.numbers import NORMS, TARGETS, TRAINING, Table, table
from benchmarks.generalization.sentences import HYPOTHESES, LEAST, Hypothesis

ALPHA = 0.05
FOLDS = 8
GIVEN = ("train_loss", "train_accuracy")


def generator(*names: str) -> np.random.Generator:
    """One a question, so that no answer depends on which others are asked."""
    return np.random.default_rng(zlib.crc32(" ".join(names).encode()))


def predictors(data: Table) -> list[dict[str, Any]]:
    """Every predictor against both targets."""
    found = []
    for name, group in data.group.items():
        known = int(np.isfinite(data.columns[name]).sum())
        row: dict[str, Any] = {"predictor": name, "group": group, "known": known}
        for target in TARGETS:
            psi, taus = granulated(data, name, target, generator(name, target, "psi"))
            row[target] = {
                "psi": psi.to_dict(),
                "axes": {axis: round(tau, 3) for axis, tau in taus.items()},
                "spearman": spearman(data, name, target, generator(name, target, "rho")).to_dict(),
                "kendall": kendall(data, name, target),
                "beyond": beyond(data, name, target, GIVEN, generator(name, target, "beyond")).to_dict(),
            }
        found.append(row)
    return found


def by_part(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Psi of every metric with the gap, for first, inner and last matrices apart: part -> task -> metric."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for part in ("first", "inner", "classifier"):
        for task, some in rows.items():
            data = table(some, part)
            names = [name for name, group in data.group.items() if group in ("size", "shape")]
            answers = {n: granulated(data, n, "gap", generator(n, part))[0].to_dict() for n in names}
            found.setdefault(part, {})[task] = answers
    flat = [one for tasks in found.values() for answers in tasks.values() for one in answers.values()]
    for one, p in zip(flat, holm([one["p"] for one in flat]), strict=True):
        one["holm"] = p
    return found


def correct(found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Add p-values that hold for all predictors, targets and data sets together, apart for each kind of estimate."""
    for kind in ("psi", "spearman", "beyond"):
        places = [row[target][kind] for rows in found.values() for row in rows for target in TARGETS]
        for place, p in zip(places, holm([place["p"] for place in places]), strict=True):
            place["holm"] = p


def sentences(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """Each hypothesis in each data set, and what follows."""
    rows = []
    for hypothesis in HYPOTHESES:
        answers = {name: answer(data, hypothesis) for name, data in tables.items()}
        rows.append({"sentence": hypothesis.sentence, "predictor": hypothesis.predictor, "target": hypothesis.target})
        rows[-1] |= {"predicted": hypothesis.sign, "noisy_only": hypothesis.noisy_only, "answers": answers}
    flat = [one for row in rows for one in row["answers"].values()]
    for one, p in zip(flat, holm([one["p"] for one in flat]), strict=True):
        one["holm"] = p
    for row in rows:
        row["outcome"] = outcome(row["predicted"], list(row["answers"].values()))
    return rows


def answer(data: Table, hypothesis: Hypothesis) -> dict[str, Any]:
    if hypothesis.noisy_only:
        data = data.where(data.axes["noise"] > 0)
    rng = generator(hypothesis.predictor, hypothesis.target, "sentence")
    return granulated(data, hypothesis.predictor, hypothesis.target, rng)[0].to_dict()


def holding(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """By group the predictors whose Psi with the gap has one sign, stands after Holm and is not small, everywhere."""
    places = [{row["predictor"]: row for row in rows} for rows in found.values()]
    held: dict[str, list[str]] = {row["group"]: [] for row in next(iter(found.values()))}
    for name, row in places[0].items():
        psi = [place[name]["gap"]["psi"] for place in places]
        if outcome(1, psi) in ("supported", "contradicted"):
            held[row["group"]].append(name)
    return held


def outcome(sign: int, answers: list[dict[str, Any]]) -> str:
    """Of a hypothesis: supported, contradicted, too small, mixed or unknown."""
    if any(one["value"] is None for one in answers):
        return "cannot be told"
    sure = [one["holm"] < ALPHA for one in answers]
    signs = {int(np.sign(one["value"])) for one in answers}
    if all(sure) and len(signs) == 1 and min(abs(one["value"]) for one in answers) >= LEAST:
        return "supported" if signs == {sign} else "contradicted"
    if not any(sure) or max(abs(one["value"]) for one in answers) < LEAST:
        return "no relation of note"
    return "mixed"


def levels(data: Table) -> dict[str, Any]:
    """How large the outcomes are, and how far a second seed repeats the first."""
    ratios = np.array([lead / other for row in data.rows for lead, other in row["push"]])
    quantiles = {
        name: np.quantile(data.columns[name], [0, 0.25, 0.5, 0.75, 1]).round(4).tolist()
        for name in (*TARGETS, "train_accuracy", "train_loss")
    }
    first, second = pairs(data)["seed"]
    again = {
        name: correlation(data.columns[name][first], data.columns[name][second], generator("again")).to_dict()
        for name in TARGETS
    }
    known = {name: int(np.isfinite(data.columns[name]).sum()) for name in ("alpha", "hill_alpha", "farms_alpha")}
    push = np.quantile(ratios, [0.05, 0.5, 0.95]).round(3).tolist()
    layers = [layer["alpha"] for row in data.rows for layer in row["layers"][:-1]]
    return {
        "networks": len(data),
        "quantiles": quantiles,
        "seed_again": again,
        "push_ratio": {"quantiles": push, "above_1": round(float((ratios > 1).mean()), 4), "layers": len(ratios)},
        "known": known,
        "alpha_of_layers": {"known": sum(alpha is not None for alpha in layers), "layers": len(layers)},
        "spoken": {name: int((data.columns[name] > 0).sum()) for name in data.group if name.startswith("verdict")},
    }


def unseen(data: Table) -> dict[str, dict[str, float]]:
    """Share of the gap's variance (as ranks) that ridge regression explains in settings it has not seen.

    Eight folds over the settings, both seeds of a setting in the same fold; the penalty by leave-one-out inside.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    spectral = [name for name, group in data.group.items() if group in ("size", "shape")]
    plans = {
        "training loss and accuracy": ("train_loss", "train_accuracy"),
        "norms": NORMS,
        "shape of the spectrum": [name for name in spectral if data.group[name] == "shape"],
        "spectrum": spectral,
        "training and norms": (*TRAINING, *NORMS),
        "training, norms and spectrum": (*TRAINING, *NORMS, *spectral),
        "settings": (),
        "settings, training and norms": (*TRAINING, *NORMS),
        "settings, training, norms and spectrum": (*TRAINING, *NORMS, *spectral),
    }
    settings = [(values == value).astype(float) for values in data.axes.values() for value in np.unique(values)[1:]]
    setting = np.unique(
        np.stack([np.unique(v, return_inverse=True)[1] for a, v in data.axes.items() if a != "seed"], 1),
        axis=0,
        return_inverse=True,
    )[1].ravel()
    folds = np.random.default_rng(0).permutation(setting.max() + 1)[setting]
    found: dict[str, dict[str, float]] = {}
    for target in TARGETS:
        y = rankdata(data.columns[target])
        for plan, names in plans.items():
            columns = settings * ("settings" in plan) + [filled(data.columns[name]) for name in names]
            model = make_pipeline(StandardScaler(), RidgeCV(np.geomspace(0.01, 1e4, 25)))
            guess = cross_val_predict(model, np.stack(columns, 1), y, groups=folds, cv=GroupKFold(FOLDS))
            score = 1 - float(((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum())
            found.setdefault(plan, {})[target] = round(score, 3)
    return found


def filled(column: np.ndarray) -> np.ndarray:
    """Ranks, the unknown in the middle."""
    ranks = np.full(len(column), (np.isfinite(column).sum() + 1) / 2)
    known = np.isfinite(column)
    ranks[known] = rankdata(column[known])
    return ranks

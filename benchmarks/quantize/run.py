"""Quantization: where the bits go, how numbers are rounded, what corrections recover; all at equal bytes.

``python -m benchmarks quantize`` runs all subjects; ``python -m benchmarks.quantize.run SUBJECT ...`` some of them, and
keeps what the others measured before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quantize.measures import measured
from benchmarks.quantize.subjects import SUBJECTS
from benchmarks.results import keep, table

HERE = Path(__file__).parent
TITLE = "Quantization at equal bytes"
PLAIN = "Moments of the samples alone (`spread=0`), and as usual, a share of them with tokens drawn anew:"
CORRECTED = "A correction of rank 16 on 3 bits, by what its error is measured in:"
CORRECTED_ALONE = "The same with moments of the samples alone:"
JOINT = "Joint plans (`forms=`):"


def mean(distance: Mapping[str, float]) -> float:
    return sum(distance.values()) / len(distance)


def page(subjects: Mapping[str, Mapping[str, Any]]) -> str:
    """The findings as Markdown."""
    return "\n\n".join([marks(subjects), negative(subjects), *(section(found) for found in subjects.values())])


def row(found: Mapping[str, Any], part: str, **wanted: Any) -> Mapping[str, Any]:
    return next(one for one in found[part] if all(one[key] == value for key, value in wanted.items()))


def marks(subjects: Mapping[str, Mapping[str, Any]]) -> str:
    """The marks, each with what was measured, means over the test sets."""
    losses, others = [], []
    for found in subjects.values():
        for way in ("predicted", "as the command chooses"):
            of = [
                f"{allocated(found, budget, way) / base:.2f} x"
                for budget in ("int3", "int4")
                for base in (allocated(found, budget, "the same"), alone(found, budget))
            ]
            losses.append((found["name"], way, *of))
        predicted, random = (allocated(found, "int3", name) for name in ("predicted", "random"))
        kinds = found["corrections"], found.get("plain_corrections", found["corrections"])
        back = [recovered(rows, how) for how in ("nearest, no clipping", "compensated") for rows in kinds]
        others.append((found["name"], f"{1 - predicted / random:.0%}", *back))
    return "\n\n".join(
        [
            "Distances are means over the test sets of each model, at the bytes of the same bits everywhere, in units "
            "of what those lose: with the same moments, and with moments of the samples alone (`spread=0`).",
            table(("model", "bits by", "3 bits (mark 0.85 x)", "3 bits, of the samples alone",
                   "4 bits (mark 1.05 x)", "4 bits, of the samples alone"), losses),
            table(("model", "predicted is below random, 3 bits (mark 30 %)",
                   "rank 16 recovers of int3, to the nearest (mark 50 %)", "the same, of the samples alone",
                   "of int3, compensated", "the same, of the samples alone"), others),
        ]
    )  # fmt: skip


def recovered(rows: Sequence[Mapping[str, Any]], how: str) -> str:
    """Of what a rounding loses, the share that a correction under both moments takes back; by test set, too."""
    none, both = (
        next(one["distance"] for one in rows if one["rounding"] == how and one["correction"] == kind)
        for kind in ("none", "both")
    )
    sets = ", ".join(f"{1 - both[name] / none[name]:.0%} {name}" for name in none) if len(none) > 1 else ""
    return f"{1 - mean(both) / mean(none):.0%}" + (f" ({sets})" if sets else "")


def alone(found: Mapping[str, Any], budget: str) -> float:
    """Mean distance of the same bits everywhere, with moments of the samples alone."""
    if "plain" not in found:
        return allocated(found, budget, "the same")
    return mean(row(found, "plain", budget=budget, moments="the samples", way="the same bits everywhere")["distance"])


def negative(subjects: Mapping[str, Mapping[str, Any]]) -> str:
    """Weight-only features against data-aware predictions, one line a model."""
    lines = []
    for found in subjects.values():
        sense = found["sensitivity"]
        luck, own = sense["chance"], sense["features"]
        best = max(sense["spectral"], key=lambda name: abs(sense["spectral"][name]["rho"]))
        lines.append(
            (
                found["name"], sense["layers"], *(f"{own[name]['rho']:+.2f}" for name in own if name != "predicted"),
                f"{best} {sense['spectral'][best]['rho']:+.2f}", f"{luck['by_chance']:.2f}", f"{luck['p']:.2g}",
                f"{own['predicted']['rho']:+.2f} ({own['predicted']['p']:.1g})",
            )
        )  # fmt: skip
    names = [name for name in next(iter(subjects.values()))["sensitivity"]["features"] if name != "predicted"]
    head = ("model", "matrices", *names, "best of all spectral features", "that chance reaches (95 %)",
            "p of the best", "predicted (p)")  # fmt: skip
    return (
        "Does a weight's own spectrum say how many bits it needs? Rank correlations with the distance measured when a "
        "layer alone is rounded to int3. The best of many features must be compared with the best that shuffled losses "
        "give; a sign that differs from model to model predicts nothing.\n\n" + table(head, lines)
    )


def spectral(sense: Mapping[str, Any]) -> list[str]:
    """Every feature of the weights' spectra."""
    lines = [(n, f"{f['rho']:+.2f}", f"{f['p']:.2g}") for n, f in sense["spectral"].items()]
    luck = sense["chance"]
    return [
        f"The same for each of {luck['features']} metrics of the spectrum alone; the largest |rho| is "
        f"{luck['largest']:.2f}, shuffled losses reach {luck['by_chance']:.2f} in one of 20 draws (p {luck['p']:.2g}):",
        table(("metric", "rho", "p of it alone"), lines),
    ]


def allocated(found: Mapping[str, Any], budget: str, name: str) -> float:
    """Mean distance of the first allocation whose name begins so."""
    rows = (one for one in found["allocations"] if one["budget"] == budget and one["allocation"].startswith(name))
    return mean(next(rows)["distance"])


def section(found: Mapping[str, Any]) -> str:
    sets = list(found["allocations"][0]["distance"])

    def cells(one: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
        return [
            f"{one['distance'][name]:.4g} ({one['distance'][name] / base['distance'][name]:.2f} x)" for name in sets
        ]

    parts = [
        f"## {found['name']}",
        f"{found['layers']} layers, {found['weights']:,} weights; {found['note']}. Distance: {found['measure']}. "
        f"Planning took {found['cpu_seconds_to_plan']:.0f} CPU seconds.",
    ]
    sense = found["sensitivity"]
    parts += [
        f"Rank correlation with the distance measured when a layer alone is rounded to {sense['form']}:",
        table(
            ("predictor", "rho", "p", "usual factor between it and the measured, but for a common one"),
            [
                (n, f"{f['rho']:+.2f}", f"{f['p']:.2g}", f"{f['factor']:.2f}" if "factor" in f else "")
                for n, f in sense["features"].items()
            ],
        ),
    ]
    parts += spectral(sense)
    for budget in dict.fromkeys(one["budget"] for one in found["allocations"]):
        some: Sequence[Mapping[str, Any]] = [one for one in found["allocations"] if one["budget"] == budget]
        lines = []
        for one in sorted(some, key=lambda one: mean(one["distance"])):
            spread = ", ".join(f"{a:.3g} .. {b:.3g}" for a, b in one.get("spread", {}).values())
            lines.append((one["allocation"], f"{one['bytes']:,}", *cells(one, some[0]), spread))
        parts += [
            f"Bits by layer, at the bytes of {budget} everywhere:",
            table(("by", "bytes", *sets, "spread"), lines),
        ]
    lines = [(one["bits"], one["rounding"], *cells(one, row(found, "roundings", bits=one["bits"])))
             for one in found["roundings"]]  # fmt: skip
    parts += ["Rounding, the same bits, groups and bytes:", table(("bits", "rounding", *sets), lines)]
    for part, title in (("corrections", CORRECTED), ("plain_corrections", CORRECTED_ALONE)):
        if part in found:
            lines = [
                (one["rounding"], one["correction"],
                 *cells(one, row(found, part, rounding=one["rounding"], correction="none")))
                for one in found[part]
            ]  # fmt: skip
            parts += [title, table(("rounding", "correction", *sets), lines)]
    can = found["bounds"]
    parts.append(
        f"Layers wide enough for rank 16 have {can['room']:.1%} of the predicted loss of int3, compensated. The first "
        f"16 directions of their errors hold {can['codes']:.1%} of it, the most that a correction of these codes can "
        f"recover; codes and corrections made for one another: {can['joint']:.1%}."
    )
    lines = [(one["way"], f"{one['bytes']:,}", *cells(one, found["trade"][0])) for one in found["trade"]]
    parts += ["More bits, or a correction:", table(("way", "bytes", *sets), lines)]
    if "plain" in found:
        lines = [
            (one["budget"], one["moments"], one["way"], *cells(one, row(found, "plain", budget=one["budget"])))
            for one in found["plain"]
        ]
        parts += [PLAIN, table(("bytes of", "moments of", "way", *sets), lines)]
    if "joint" in found:
        lines = [
            (one["budget"], one["way"], f"{one['bytes']:,}", *cells(one, row(found, "joint", budget=one["budget"])),
             len(one["shrunk"]))
            for one in found["joint"]
        ]  # fmt: skip
        parts += [JOINT, table(("bytes of", "way", "bytes", *sets, "layers shrunk"), lines)]
    return "\n\n".join(parts)


def main(quick: bool = False, names: Sequence[str] = ()) -> None:
    path = HERE / "results.json"
    known = json.loads(path.read_text())["subjects"] if path.exists() and names and not quick else {}
    known = {name: found for name, found in known.items() if isinstance(found.get("spread"), float)}  # not older ones
    for name in names or SUBJECTS:
        started = time.process_time()
        known[name] = measured(SUBJECTS[name](quick))
        print(f"{name}: {time.process_time() - started:.0f} CPU s", flush=True)
        text = page({name: known[name] for name in SUBJECTS if name in known})
        if not quick:
            keep(HERE, TITLE, {"subjects": known}, text)
    if quick:
        print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*SUBJECTS, []])
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    main(quick=asked.quick, names=asked.names)

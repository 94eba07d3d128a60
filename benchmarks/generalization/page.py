"""The findings as a readable page and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.results import table

Found = Mapping[str, Any]
AXES = ("width", "depth", "optimizer", "rate", "decay", "noise", "examples", "seed")
COLOURS = {"training": "#8a5a00", "norm": "#8a5a00", "size": "#0b5cad", "shape": "#b0306a", "verdict": "#5b6b7b"}
SIGN = {1: "+", -1: "-"}


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"


def told(one: Found) -> str:
    """A correlation, its interval, a star where it stands after Holm's correction."""
    if one["value"] is None:
        return "-"
    star = " *" if one.get("holm") is not None and one["holm"] < 0.05 else ""
    return f"{one['value']:+.2f} ({one['low']:+.2f} ... {one['high']:+.2f}){star}"


def strength(rows: Sequence[Found]) -> float:
    """The weaker of the two data sets' Psi with the gap, 0 where their signs differ."""
    values = [row["gap"]["psi"]["value"] or 0.0 for row in rows]
    return min(map(abs, values)) if len({value > 0 for value in values}) == 1 else 0.0


def by_predictor(found: Mapping[str, Sequence[Found]]) -> list[tuple[str, dict[str, Found]]]:
    """Every predictor with its row in each data set, the strongest first."""
    names = [row["predictor"] for row in next(iter(found.values()))]
    places = {task: {row["predictor"]: row for row in rows} for task, rows in found.items()}
    both = [(name, {task: places[task][name] for task in found}) for name in names]
    return sorted(both, key=lambda pair: -strength(list(pair[1].values())))


def constant(rows: Mapping[str, Found]) -> bool:
    return all(row["gap"]["psi"]["value"] is None for row in rows.values())


def held_lines(held: Mapping[str, Sequence[str]]) -> str:
    """Who holds in every data set, by group."""
    titles = {
        "training": "What training shows",
        "norm": "Norms",
        "size": "Size of the spectrum",
        "shape": "Shape of the spectrum",
        "verdict": "Verdicts",
    }
    return "\n".join(f"- {titles[group]}: {', '.join(names) or 'none'}." for group, names in held.items())


def sentence_table(rows: Sequence[Found], tasks: Sequence[str]) -> str:
    return table(
        ["sentence", "measured by", "should go with", "predicted", *tasks, "outcome"],
        [
            [
                row["sentence"],
                row["predictor"],
                row["target"] + " (noisy labels only)" * row["noisy_only"],
                SIGN[row["predicted"]],
                *(told(row["answers"][task]) for task in tasks),
                f"**{row['outcome']}**",
            ]
            for row in rows
        ],
    )


def predictor_table(found: Mapping[str, Sequence[Found]]) -> str:
    tasks = list(found)
    head = ["predictor", "group"]
    head += [f"Ψ gap, {task}" for task in tasks] + [f"ρ gap, {task}" for task in tasks]
    head += [f"Ψ test accuracy, {task}" for task in tasks]
    rows = []
    for name, both in by_predictor(found):
        if not constant(both):
            row = [name, next(iter(both.values()))["group"]]
            row += [told(both[task]["gap"]["psi"]) for task in tasks]
            row += [number(both[task]["gap"]["spearman"]["value"]) for task in tasks]
            row += [told(both[task]["test_accuracy"]["psi"]) for task in tasks]
            rows.append(row)
    return table(head, rows)


def part_table(found: Mapping[str, Mapping[str, Mapping[str, Found]]]) -> str:
    """Metrics that are sure in some part of the network in both data sets."""
    tasks = list(next(iter(found.values())))
    rows = []
    for part, answers in found.items():
        for name in answers[tasks[0]]:
            both = [answers[task][name] for task in tasks]
            if all(one["value"] is not None and one["holm"] < 0.05 for one in both):
                rows.append([part, name, *map(told, both)])
    return table(["matrices", "metric", *tasks], rows)


def axis_table(found: Mapping[str, Sequence[Found]], shown: Sequence[str]) -> str:
    rows = []
    for name, both in by_predictor(found):
        if name in shown:
            cells = [" / ".join(number(both[task]["gap"]["axes"].get(axis), 1) for task in both) for axis in AXES]
            rows.append([name, *cells])
    return table(["predictor", *AXES], rows)


def beyond_table(found: Mapping[str, Sequence[Found]]) -> str:
    tasks = list(found)
    rows = []
    for name, both in by_predictor(found):
        values = [both[task]["gap"]["beyond"] for task in tasks]
        if any(one["value"] is not None and one["holm"] < 0.05 for one in values):
            rows.append([name, next(iter(both.values()))["group"], *map(told, values)])
    return table(["predictor", "group", *tasks], rows)


def unseen_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    tasks = list(scores)
    plans = list(next(iter(scores.values())))
    return table(
        ["known", *(f"gap, {task}" for task in tasks), *(f"test accuracy, {task}" for task in tasks)],
        [
            [
                plan,
                *(f"{scores[task][plan]['gap']:.2f}" for task in tasks),
                *(f"{scores[task][plan]['test_accuracy']:.2f}" for task in tasks),
            ]
            for plan in plans
        ],
    )


def picture(found: Mapping[str, Sequence[Found]]) -> str:
    """Psi with the gap of every predictor, with intervals, both data sets: a small SVG for light and dark pages."""
    pairs = [pair for pair in by_predictor(found) if not constant(pair[1])]
    pairs.sort(key=lambda pair: -sum((row["gap"]["psi"]["value"] or 0) for row in pair[1].values()))
    left, width, line, top = 190, 460, 15, 46
    height = top + line * len(pairs) + 30

    def at(value: float) -> float:
        return left + width * (value + 0.8) / 1.6

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{left + width + 20}" height="{height}" fill="#fff"/>',
        '<text x="10" y="16" font-size="12.5" font-weight="600">Does it go with the generalization gap? Kendall’s Ψ '
        "within hyper-parameters, 95 % intervals</text>",
        '<text x="10" y="33"><tspan fill="#8a5a00">training, norms</tspan>, '
        '<tspan fill="#0b5cad">size of the spectrum</tspan>, '
        '<tspan fill="#b0306a">its shape</tspan>, '
        '<tspan fill="#5b6b7b">verdicts</tspan>; filled: digits, open: manual</text>',
    ]
    for tick in (-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75):
        colour = "#444" if tick == 0 else "#ddd"
        parts.append(f'<path d="M{at(tick):.1f} {top - 6}V{height - 24}" stroke="{colour}"/>')
        parts.append(f'<text x="{at(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>')
    for place, (name, both) in enumerate(pairs):
        y = top + line * place + 4
        colour = COLOURS[next(iter(both.values()))["group"]]
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
        for nth, row in enumerate(both.values()):
            one, level = row["gap"]["psi"], y - 2.5 + 5 * nth
            if one["value"] is None:
                continue
            ends = f"M{at(one['low']):.1f} {level}H{at(one['high']):.1f}"
            parts.append(f'<path d="{ends}" stroke="{colour}" stroke-width="1.2"/>')
            parts.append(
                f'<circle cx="{at(one["value"]):.1f}" cy="{level}" r="2.6" stroke="{colour}" '
                f'fill="{"#fff" if nth else colour}"/>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"

"""The readable page of the results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.drift.pixels import TOLD
from benchmarks.results import table

PEERS = ("KS softmax", "KS hidden", "MMD hidden")
OTHERS = ("PCA", "sigma_1")


def page(found: Mapping[str, Any]) -> str:
    cells = [one for name, part in found.items() if name.startswith(("digits", "texts")) for one in part]
    parts = [_calibration(found["calibration"])] if "calibration" in found else []
    parts += [_quiet(cells), _power(cells)] if cells else []
    if "streams" in found:
        parts.append(_streams(found["streams"]))
    if "sketching" in found:
        parts.append(_sketching(found["sketching"]))
    if "memory" in found:
        parts.append(_memory(found["memory"]))
    return "\n\n".join(parts)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0") if value < 1 else "1.00"


def _calibration(cells: Sequence[Mapping[str, Any]]) -> str:
    count = sum(one["repeats"] for one in cells)
    ours = sum(one["rates"]["netspectra"] * one["repeats"] for one in cells) / count
    error = (0.05 * 0.95 / count) ** 0.5
    rows = [[one["data"], one["window"], one["repeats"], _rate(one["rates"]["netspectra"])] for one in cells]
    text = (
        f"Ours alone, references of 300 rows, 199 exchanges: {ours:.4f} of {count} windows alarm at 5 % while nothing "
        f"happened (one standard error of a true 5 % is {error:.4f})."
    )
    return f"## Calibration\n\n{text}\n\n{table(['data', 'window', 'windows', 'alarms'], rows)}"


def _quiet(cells: Sequence[Mapping[str, Any]]) -> str:
    mine = [one for one in cells if one["shift"] == "nothing"]
    names = ["netspectra", *PEERS, *OTHERS]
    rows = [
        [one["data"], one["window"], one["repeats"], *(_rate(one["rates"].get(name)) for name in names)] for one in mine
    ]
    for data in dict.fromkeys(one["data"] for one in mine):
        some = [one for one in mine if one["data"] == data]
        count = sum(one["repeats"] for one in some)
        pooled = [
            sum(one["rates"][n] * one["repeats"] for one in some) / count if n in some[0]["rates"] else None
            for n in names
        ]
        rows.append([f"**{data}**", "all", count, *map(_rate, pooled)])
    count = sum(one["repeats"] for one in mine)
    ours = sum(one["rates"]["netspectra"] * one["repeats"] for one in mine) / count
    error = (0.05 * 0.95 / count) ** 0.5
    text = (
        f"Share of windows that alarm at 5 % while nothing happened. All together: ours {ours:.4f} of {count} "
        f"(one standard error of a true 5 % is {error:.4f})."
    )
    return f"## False alarms beside others\n\n{text}\n\n{table(['data', 'window', 'windows', *names], rows)}"


def _power(cells: Sequence[Mapping[str, Any]]) -> str:
    names = ["netspectra", *PEERS, *OTHERS]
    rows, least, leads = [], [], {}
    for one in cells:
        if one["shift"] == "nothing":
            continue
        rates = one["rates"]
        best = max(rates[name] for name in PEERS if name in rates)
        ahead = rates["netspectra"] - best
        least.append((ahead, f"{one['data']}, window {one['window']}, {one['shift']}"))
        leads.setdefault((one["data"], one["shift"]), []).append(ahead)
        shift = TOLD.get(one["shift"], one["shift"])
        rows.append([one["data"], one["window"], shift, *(_rate(rates.get(name)) for name in names), f"{ahead:+.2f}"])
    behind = [f"{where} ({ahead:+.2f})" for ahead, where in sorted(least) if ahead < -0.05]
    large = sorted({f"{data}, {shift}" for (data, shift), some in leads.items() if max(some) >= 0.2})
    seconds = statistics.median(one["seconds"] for one in cells)
    text = (
        "Share of windows that alarm after a change. The last column is ours less the best of the KS tests and MMD; "
        f"the worst is {min(least)[0]:+.2f} ({min(least)[1]}). "
        f"Behind by more than 0.05: {'; '.join(behind) or 'nowhere'}. "
        f"Ahead by 0.2 or more: {'; '.join(large) or 'nowhere'}. A test of ours takes {seconds:.2f} processor seconds "
        "(median over the cells)."
    )
    return f"## Power\n\n{text}\n\n{table(['data', 'window', 'change', *names, 'ahead'], rows)}"


def _streams(found: Mapping[str, Any]) -> str:
    delays = "; ".join(
        f"{name}: {statistics.median(some):.0f} windows ({min(some)} to {max(some)}; 201: never)"
        for name, some in found["delays"].items()
    )
    return (
        f"## Streams\n\nOf {found['streams']} streams of {found['windows']} quiet windows of 20 rows "
        f"{found['alarmed']} ever alarmed ({found['alarmed'] / found['streams']:.1%}; at most 5 % may). "
        f"Windows until the alarm once a drift began, median of {len(next(iter(found['delays'].values())))}: {delays}. "
        f"{found['seconds_a_row'] * 1e6:.0f} processor microseconds a row."
    )


def _sketching(cells: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [one["window"], TOLD.get(one["shift"], one["shift"]), one["repeats"],
         *(_rate(one["rates"][name]) for name in ("exact", "sketched")),
         f"{one['rates']['sketched'] - one['rates']['exact']:+.2f}"]
        for one in cells
    ]  # fmt: skip
    compared = table(["window", "change", "windows", "exact", "sketched", "difference"], rows)
    return (
        "## What sketching costs\n\nThe same references and windows, 512 numbers wide; directions from the "
        f"covariance or from the sketch.\n\n{compared}"
    )


def _memory(found: Sequence[Mapping[str, float]]) -> str:
    rows = [
        [
            f"{one['rows']:.0f}",
            f"{one['peak_bytes'] / 1e6:.0f} MB",
            f"{one['file_bytes'] / 1e6:.2f} MB",
            f"{one['seconds']:.1f}",
        ]
        for one in found
    ]
    head = ["rows", "peak memory", "file", "processor seconds"]
    return f"## Memory\n\nMaking a reference of rows 4096 wide, as they come.\n\n{table(head, rows)}"

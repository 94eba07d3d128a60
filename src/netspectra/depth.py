"""Across the layers of one model: who stands out from its siblings, and what changes with depth."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from netspectra.metrics import METRICS, evaluate
from netspectra.record import Record

__all__ = ["COMPARED", "Deviation", "Profile", "Trend", "deviations", "profiles", "role", "trends"]

COMPARED = ("spectral_norm", "frobenius_norm", "stable_rank", "effective_rank")  # positive: compared as logarithms
FEWEST = 8  # siblings: with fewer the spread of noise itself is a guess
FEWEST_FOR_TREND = 5
SCATTER = 0.01  # the least spread of a logarithm that counts: siblings that are alike to 1 % are alike
EVERY_PAIR = 256  # siblings up to which the slope is taken over every pair
NUMBER = re.compile(r"(?<![^.\[\s_/])\d+(?![^.\]\s_/])")


@dataclass(frozen=True)
class Deviation:
    """How far one weight is from the line through its siblings.

    Attributes:
        metric: of `COMPARED`.
        value: of this weight.
        expected: what the line gives at its place.
        ratio: the one over the other.
        deviations: the difference of the logarithms over the siblings' robust spread; positive where it is larger.
        siblings: how many weights the line is drawn through, itself included.
        role: the name they share, numbers replaced by ``*``.
    """

    metric: str
    value: float
    expected: float
    ratio: float
    deviations: float
    siblings: int
    role: str


@dataclass(frozen=True)
class Trend:
    """How a metric changes from the first sibling to the last.

    Attributes:
        role: the name they share.
        metric: of `COMPARED`.
        layers: how many siblings.
        first: where the line begins.
        last: where it ends.
        tau: Kendall's rank correlation with depth.
        p: chance of as strong a one without a trend (Mann-Kendall, normal approximation).
    """

    role: str
    metric: str
    layers: int
    first: float
    last: float
    tau: float
    p: float


@dataclass(frozen=True)
class Profile:
    """One metric of the weights of one role, by depth, with the line through the logarithms.

    Attributes:
        role: the name they share, numbers replaced by ``*``.
        metric: of `COMPARED`.
        places: positions of the weights among the records, by depth.
        logs: natural logarithms of the metric, by depth.
        line: Theil's line through them: the median slope and the median of what is left.
    """

    role: str
    metric: str
    places: tuple[int, ...]
    logs: np.ndarray
    line: np.ndarray


def role(name: str) -> str:
    """The name with its numbers replaced: weights that share it are siblings.

    >>> role("encoder.layer.11.attention.query.weight"), role("blocks_3/fc1"), role("moe.2.up[expert 7]")
    ('encoder.layer.*.attention.query.weight', 'blocks_*/fc1', 'moe.*.up[expert *]')
    """
    return NUMBER.sub("*", name)


def profiles(records: Sequence[Record], fewest: int) -> Iterator[Profile]:
    """Each metric of each role with at least ``fewest`` weights of one shape whose metric is positive and known.

    Depth is the order of the numbers in the names. The line is Theil's: the median slope over all pairs (beyond 256
    weights over the pairs half the depth apart), then the median offset; up to 29 % of strangers do not move it.

    Source: Theil 1950, Proc. KNAW 53; Sen 1968, J. Am. Stat. Assoc. 63.
    """
    groups: dict[tuple[str, str, tuple[int, int]], list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault((role(record.name), record.kind, record.shape), []).append(place)
    for (name, _, _), places in groups.items():
        if len(places) < fewest:
            continue
        places = sorted(places, key=lambda place: [int(number) for number in NUMBER.findall(records[place].name)])
        entries = [METRICS[metric] for metric in COMPARED]
        found = [evaluate(entries, records[place].spectrum) for place in places]
        for metric in COMPARED:
            usable = [
                (place, math.log(row[metric]))
                for place, row in zip(places, found, strict=True)
                if row[metric].known and row[metric] > 0
            ]
            if len(usable) >= fewest:
                logs = np.array([log for _, log in usable])
                yield Profile(name, metric, tuple(place for place, _ in usable), logs, _line(logs))


def _exp(log: float) -> float:
    """Its exponential, kept among the finite positive numbers: a line may lead beyond them."""
    return math.exp(min(max(log, -708.0), 709.0))


def _line(y: np.ndarray) -> np.ndarray:
    x = np.arange(len(y), dtype=float)
    half = len(y) // 2
    first, second = np.triu_indices(len(y), 1) if len(y) <= EVERY_PAIR else (np.arange(half), np.arange(half) + half)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return slope * x + float(np.median(y - slope * x))


def deviations(records: Sequence[Record]) -> dict[int, list[Deviation]]:
    """By position of the record how far it is from its siblings' line, for every metric that eight or more share.

    The unit is 1.4826 times the median absolute distance from the line, and at least 1 %.
    """
    found: dict[int, list[Deviation]] = {}
    for profile in profiles(records, FEWEST):
        rest = profile.logs - profile.line
        unit = max(1.4826 * float(np.median(np.abs(rest))), SCATTER)
        for place, log, expected in zip(profile.places, profile.logs, profile.line, strict=True):
            value, line, ratio = map(_exp, (log, expected, log - expected))
            away = Deviation(profile.metric, value, line, ratio, (log - expected) / unit, len(rest), profile.role)
            found.setdefault(place, []).append(away)
    return found


def trends(records: Sequence[Record]) -> list[Trend]:
    """How each metric of each role changes with depth, where five or more weights share a role.

    Source: Mann 1945, Econometrica 13; Kendall 1975, Rank Correlation Methods.
    """
    found = []
    for profile in profiles(records, FEWEST_FOR_TREND):
        tau, p = _mann_kendall(profile.logs)
        first, last = _exp(profile.line[0]), _exp(profile.line[-1])
        found.append(Trend(profile.role, profile.metric, len(profile.logs), first, last, tau, p))
    return found


def _mann_kendall(y: np.ndarray) -> tuple[float, float]:
    """Kendall's tau-a of y with its order, and its two-sided p-value, corrected for continuity and ties."""
    n = len(y)
    S = sum(int(np.sign(y[i + 1 :] - y[i]).sum()) for i in range(n - 1))
    ties = np.unique(y, return_counts=True)[1].astype(float)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    z = max(abs(S) - 1, 0) / math.sqrt(variance) if variance > 0 else 0.0
    return S / (n * (n - 1) / 2), math.erfc(z / math.sqrt(2))

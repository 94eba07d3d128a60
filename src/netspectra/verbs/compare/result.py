"""What a comparison found, as an object to look at, index and export."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.analysis import Analysis
from netspectra.record import Skipped, Value, Verdict
from netspectra.report.comparison_page import render_comparison
from netspectra.verbs.compare.delta import Delta, number
from netspectra.verbs.compare.lineage import Vector
from netspectra.verbs.compare.matching import Pair
from netspectra.verbs.rank import Ranking
from netspectra.weight import Source, Weight
from netspectra.written import columns, strict_json, write_by_suffix

if TYPE_CHECKING:
    from netspectra.verbs.lora import Extraction, LoraOptions

__all__ = ["Compared", "Comparison"]

SHOWN = 12  # weights in the table on the terminal


@dataclass(frozen=True, eq=False)
class Compared:
    """One source against the first.

    Attributes:
        source: path, format, fingerprint.
        lineage: the verdict; ``lineage.rule`` is its name, with evidence and standing.
        deltas: one a pair of weights.
        unread: pairs that could not be compared.
        vectors: biases, norms, buffers.
        matched: share of the numbers that have a partner.
        only_before: weights without one, name and shape.
        only_after: likewise.
        notes: how they were matched.
        before: records of the first source, for these pairs.
        after: of this source.
        sources: the two, opened.
        pairs: their weights, matched.
    """

    source: Mapping[str, Any]
    lineage: Verdict
    deltas: tuple[Delta, ...]
    unread: tuple[Skipped, ...]
    vectors: tuple[Vector, ...]
    matched: float
    only_before: tuple[tuple[str, tuple[int, int]], ...]
    only_after: tuple[tuple[str, tuple[int, int]], ...]
    notes: tuple[str, ...]
    before: Analysis
    after: Analysis
    sources: tuple[Source, Source] = field(repr=False)
    pairs: tuple[Pair, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The analysis of this source with ``delta`` at every weight and ``summary.lineage``."""
        found = self.after.to_dict()
        deltas = {d.after: d for d in self.deltas}
        deltas |= {d.name: d for d in self.deltas if d.name not in deltas}
        for row in found["weights"]:
            held = deltas.get(row["name"])
            row["delta"] = None if held is None else held.to_dict()
        verdict = self.lineage
        found["summary"] |= {
            "lineage": verdict.rule,
            "lineage_message": verdict.message,
            "lineage_evidence": json.loads(json.dumps(verdict.evidence)),
            "matched": self.matched,
            "only_before": [{"name": name, "shape": list(shape)} for name, shape in self.only_before],
            "only_after": [{"name": name, "shape": list(shape)} for name, shape in self.only_after],
            "not_compared": [asdict(skipped) for skipped in self.unread],
            "vectors": [{**asdict(v), "relative_change": number(v.relative_change)} for v in self.vectors],
            "notes": list(self.notes),
        }
        return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """Checkpoints compared with the first of them.

    Iterate over the `Delta`s of the first pair, index them by the weight's name; ``lineage`` is the pair's verdict.

    Attributes:
        before: what the first source is.
        candidates: one a further source.
        names: of all sources.
        ranking: all of them by their spectra, which rank but do not certify; None where no weight is shared.
    """

    before: Mapping[str, Any]
    candidates: tuple[Compared, ...]
    names: tuple[str, ...]
    ranking: Ranking | None

    @property
    def lineage(self) -> str:
        """The verdict on the first pair, by name."""
        return self.candidates[0].lineage.rule

    @property
    def verdict(self) -> Verdict:
        """The verdict on the first pair, with its message and evidence."""
        return self.candidates[0].lineage

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """Of the first pair."""
        return self.candidates[0].deltas

    @property
    def ranked(self) -> Ranking | None:
        """The ranking, where there is something to rank: some weight changed by more than rounding."""
        return self.ranking if any(d.changed for one in self.candidates for d in one.deltas) else None

    def __iter__(self) -> Iterator[Delta]:
        """Iterate over the first pair's deltas."""
        return iter(self.deltas)

    def __len__(self) -> int:
        """Count them."""
        return len(self.deltas)

    def __getitem__(self, name: str) -> Delta:
        """Find a delta by the weight's name, before or after."""
        for delta in self.deltas:
            if name in (delta.name, delta.after):
                return delta
        raise KeyError(f"no weight {name!r} was compared")

    def extract_lora(
        self,
        to: str | Path,
        rank: int | None = None,
        *,
        energy: float | None = None,
        vectors: bool = True,
        dtype: str = "float32",
        progress: Callable[[Weight | None], None] = lambda weight: None,
    ) -> Extraction:
        """Write the first pair's change as a PEFT adapter of the first source, and say what it misses.

        Args:
            to: a new folder.
            rank: of every weight's factors; or
            energy: the share of each change that they must hold, in (0, 1].
            vectors: whether changed biases and norms go along.
            dtype: of the factors.
            progress: called with each weight that is done.

        Raises:
            InputRefused: neither or both of rank and energy, a source that is an adapter, a folder of other things.
        """
        from netspectra.verbs.lora import LoraOptions

        return self.adapter(to, LoraOptions(rank, energy, vectors, dtype), progress)

    def adapter(
        self, to: str | Path, options: LoraOptions, progress: Callable[[Weight | None], None] = lambda weight: None
    ) -> Extraction:
        """As `extract_lora`, with the options in one."""
        from netspectra.verbs.lora import extract_lora

        one = self.candidates[0]
        alone = [name for name, _ in (*one.only_before, *one.only_after)]
        return extract_lora(
            *one.sources, one.pairs, one.deltas, one.vectors, to, options, unmatched=alone, progress=progress
        )

    def advise_lora(self, energy: float = 0.95) -> dict[str, int]:
        """A rank for each changed weight: its directions beyond the noise edge, or fewer where they hold the energy.

        Directions inside the Marchenko-Pastur bulk of D are as noise has them: an adapter learns them last.
        """
        from netspectra.linalg.svd import rank_for

        found = {}
        for d in self.deltas:
            if d.changed and d.spectrum is not None:
                spikes = d.metrics.get("spikes")
                above = int(spikes) if spikes is not None and spikes.known else d.rank
                found[d.name] = max(1, min(above, rank_for(d.spectrum, energy=energy)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: the first pair at the top, further ones in ``candidates``."""
        first, *more = (one.to_dict() for one in self.candidates)
        found = {**first, "before": dict(self.before)}
        if more:
            found["candidates"] = more
        found["lora_ranks"] = self.advise_lora()
        found["ranking"] = self.ranked.to_dict() if self.ranked else None
        return found

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict())

    def to_csv(self) -> str:
        """One row a pair of weights."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        columns = ("relative_change", "cosine", "spectral_change", "spectral_distance", "rank", "intruders")
        writer.writerow(["source", "before", "after", "matched_by", "kind", "rows", "columns", "change", *columns])
        for name, one in zip(self.names[1:], self.candidates, strict=True):
            for d in one.deltas:
                row = d.to_dict()
                texts = [_cell(text) for text in (name, d.name, d.after)]
                writer.writerow([*texts, d.how, d.kind, *d.shape, row["change"], *(row[c] for c in columns)])
        return out.getvalue()

    def to_html(self) -> str:
        """A self-contained page: the change at a glance."""
        return render_comparison(self.to_dict(), self.names)

    def save(self, path: str | Path) -> None:
        """Write ``.json``, ``.csv`` or ``.html``; never half a file.

        Raises:
            InputRefused: another suffix.
        """
        writers = {".json": self.to_json, ".csv": self.to_csv, ".html": self.to_html}
        write_by_suffix(path, writers)

    def __repr__(self) -> str:
        """Say it in one line."""
        told = ", ".join(
            f"{name}: {one.lineage.rule}" for name, one in zip(self.names[1:], self.candidates, strict=True)
        )
        return f"Comparison({self.names[0]!r} with {told})"

    def __str__(self) -> str:
        """Show the verdict and the weights that changed most."""
        parts = [_told(self.names[0], name, one) for name, one in zip(self.names[1:], self.candidates, strict=True)]
        if self.ranked:
            parts.append(str(self.ranked))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        """Show verdicts and table in notebooks."""
        parts = []
        for name, one in zip(self.names[1:], self.candidates, strict=True):
            rows = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in _rows(one)
            )
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in HEAD)
            verdict = f"<p><b>{html.escape(one.lineage.rule)}</b>: {html.escape(one.lineage.message)}</p>"
            parts.append(f"<p>{html.escape(name)}</p>{verdict}<table><tr>{head}</tr>{rows}</table>")
        if self.ranked:
            parts.append(self.ranked._repr_html_())  # pyright: ignore[reportPrivateUsage]
        return "".join(parts)


HEAD = ("weight", "change", "relative", "cosine", "spectral", "rank", "new directions")


def _told(first: str, name: str, one: Compared) -> str:
    lines = [f"{first} -> {name}", f"{one.lineage.rule}: {one.lineage.message}", *one.notes]
    for side, alone in (("first", one.only_before), ("second", one.only_after)):
        if alone:
            lines.append(f"{len(alone)} weights in the {side} only, such as {alone[0][0]}")
    changed = [d for d in one.deltas if d.changed]
    if changed:
        rows = [list(HEAD), *_rows(one)]
        lines += ["", *columns(rows)]
        if len(changed) > SHOWN:
            lines.append(f"... and {len(changed) - SHOWN} more that changed less")
    return "\n".join(lines)


def _rows(one: Compared) -> list[list[str]]:
    """The weights that changed most."""
    changed = [d for d in one.deltas if d.changed]
    changed.sort(key=lambda d: -(number(d.relative_change) or 0.0))
    return [
        [
            d.name,
            "change",
            _short(d.relative_change, ".3%"),
            _short(d.cosine, ".5f"),
            _short(d.spectral_change, ".3%"),
            str(d.rank),
            _short(d.intruders, ".0f"),
        ]
        for d in changed[:SHOWN]
    ]


def _short(value: Value, form: str) -> str:
    return format(float(value), form) if value.known else "-"


def _cell(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text

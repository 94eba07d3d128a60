"""What an interpretation found: directions with their token lists, and how far each is to be believed."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from netspectra.linalg.discovery import simes
from netspectra.report.interpretation_page import render_interpretation
from netspectra.verbs.interpret.circuits import KINDS, Kind
from netspectra.written import strict_json, write_by_suffix

__all__ = ["RELIABLE", "Direction", "Interpretation", "TokenList"]

RELIABLE = 0.5  # sine of the expected turn, 30 degrees: beyond, a vector is a mixture with its neighbours
SHOWN = 20


@dataclass(frozen=True)
class TokenList:
    """The tokens at one end of a direction, on one side of a circuit.

    Attributes:
        side: ``left`` (written; of qk: attending) or ``right`` (read; of qk: attended to).
        sign: +1 or -1: both sides of a triplet change sign together.
        tokens: ids, the most extreme first.
        words: their texts; ``#id`` where no tokenizer is known.
        scores: projections, in standard deviations over the vocabulary.
        likeness: mean cosine between the tokens in the whitened token table.
        sharpness: mean score.
        p_likeness: against random directions.
        p_sharpness: likewise.
        p: of both: how often a random direction's list is as rare in the less rare of the two.
        coherent: its tokens are more alike and stand out further than chance gives, at the false discovery rate.
        sharp: they stand out further than chance gives, likewise; they need not be alike.
    """

    side: str
    sign: int
    tokens: tuple[int, ...]
    words: tuple[str, ...]
    scores: tuple[float, ...]
    likeness: float
    sharpness: float
    p_likeness: float
    p_sharpness: float
    p: float
    coherent: bool
    sharp: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {"likeness": self.likeness, "sharpness": self.sharpness,
                   "p_likeness": self.p_likeness, "p_sharpness": self.p_sharpness, "p": self.p}  # fmt: skip
        flags = {"coherent": self.coherent, "sharp": self.sharp}
        return {"side": self.side, "sign": self.sign, "tokens": list(self.tokens), "words": list(self.words),
                "scores": [round(s, 3) for s in self.scores], **numbers, **flags}  # fmt: skip


@dataclass(frozen=True)
class Direction:
    """One singular triplet of one circuit.

    Attributes:
        layer: name of the block.
        number: its place.
        head: None for MLPs.
        kind: ov, qk, mlp_in, mlp_out.
        index: from 0, the largest singular value.
        sigma: singular value of the circuit on the normalized stream.
        share: of the circuit's squared Frobenius norm.
        turn_left: sine by which rounding of the stored weights is expected to have turned the left vector.
        turn_right: of the right vector.
        lists: token lists, both signs and the sides the circuit has.
        effect: of removing it, where a model was run: see `Interpretation.effect_unit`.
    """

    layer: str
    number: int
    head: int | None
    kind: Kind
    index: int
    sigma: float
    share: float
    turn_left: float
    turn_right: float
    lists: tuple[TokenList, ...]
    effect: float | None = None

    @property
    def name(self) -> str:
        """``model.layers.3 head 5 ov 0``."""
        return f"{self.layer}{'' if self.head is None else f' head {self.head}'} {self.kind} {self.index}"

    @property
    def turn(self) -> float:
        """The larger sine, of the sides it has."""
        turns = {"mlp_in": (self.turn_right,), "mlp_out": (self.turn_left,)}
        return max(turns.get(self.kind, (self.turn_left, self.turn_right)))

    @property
    def reliable(self) -> bool:
        """Whether the singular value stands apart enough from its neighbours, for what the weights are known to."""
        return self.turn < RELIABLE

    @property
    def coherent(self) -> bool:
        """Whether one of its lists is."""
        return any(one.coherent for one in self.lists)

    @property
    def sharp(self) -> bool:
        """Whether one of its lists is."""
        return any(one.sharp for one in self.lists)

    @property
    def p(self) -> float:
        """Of its lists' p together (Simes): that none of them says more than a random direction's."""
        return simes(np.array([one.p for one in self.lists])) if self.lists else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "layer": self.layer,
            "number": self.number,
            "head": self.head,
            "kind": self.kind,
            "index": self.index,
            "sigma": self.sigma,
            "share": self.share,
            "turn_degrees": [round(math.degrees(math.asin(t)), 2) for t in (self.turn_left, self.turn_right)],
            "p": self.p,
            "reliable": self.reliable,
            "coherent": self.coherent,
            "sharp": self.sharp,
            "effect": self.effect,
            "lists": [one.to_dict() for one in self.lists],
        }

    def __str__(self) -> str:
        """Show its lists."""
        flags = ", ".join(f for f, on in (("coherent", self.coherent), ("not separable", not self.reliable)) if on)
        effect = "" if self.effect is None else f", effect {self.effect:.3g}"
        lines = [f"{self.name}: sigma {self.sigma:.4g}, {self.share:.1%}{effect}{f' ({flags})' if flags else ''}"]
        for one in self.lists:
            mark = "*" if one.coherent else "." if one.sharp else " "
            lines.append(f" {mark}{'+' if one.sign > 0 else '-'} {one.side:5} {' '.join(map(repr, one.words))}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Interpretation:
    """The directions of a transformer; iterate over it, or `select` some.

    Attributes:
        source: path, format, fingerprint.
        directions: in the order of the layers.
        options: what was asked.
        notes: what had to be assumed.
        effect_unit: what `Direction.effect` is; empty where no model was run.
    """

    source: Mapping[str, Any]
    directions: tuple[Direction, ...]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    effect_unit: str = field(default="")

    def __iter__(self) -> Iterator[Direction]:
        """Iterate over the directions."""
        return iter(self.directions)

    def __len__(self) -> int:
        """Count them."""
        return len(self.directions)

    def select(
        self, *, layer: int | None = None, head: int | None = None, kind: Kind | None = None, coherent: bool = False
    ) -> tuple[Direction, ...]:
        """Directions of one layer, head or kind; ``coherent``: those alone."""
        return tuple(
            d
            for d in self.directions
            if layer in (None, d.number)
            and head in (None, d.head)
            and kind in (None, d.kind)
            and (d.coherent or not coherent)
        )

    @property
    def coherent(self) -> tuple[Direction, ...]:
        """Directions with a coherent list, the most certain first; of equals the larger share."""
        return tuple(sorted((d for d in self if d.coherent), key=lambda d: (d.p, -d.share)))

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By kind: directions; coherent, sharp and reliable ones; those both coherent and reliable."""
        found: dict[str, dict[str, int]] = {}
        for kind in KINDS:
            mine = self.select(kind=kind)
            if mine:
                found[kind] = {
                    "directions": len(mine),
                    "coherent": sum(d.coherent for d in mine),
                    "sharp": sum(d.sharp for d in mine),
                    "reliable": sum(d.reliable for d in mine),
                    "both": sum(d.coherent and d.reliable for d in mine),
                }
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        return {
            "schema": 1,
            "verb": "interpret",
            "source": dict(self.source),
            "options": dict(self.options),
            "notes": list(self.notes),
            "counts": self.counts,
            "effect_unit": self.effect_unit,
            "directions": [d.to_dict() for d in self],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict())

    def to_csv(self) -> str:
        """One row a token list."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        head = ("layer", "head", "kind", "index", "sigma", "share", "reliable", "effect")
        more = ("side", "sign", "likeness", "sharpness", "p_likeness", "p_sharpness", "p", "coherent", "sharp", "words")
        writer.writerow([*head, *more])
        for d in self:
            first = [d.layer, d.head, d.kind, d.index, d.sigma, d.share, d.reliable, d.effect]
            for one in d.lists:
                words = json.dumps(list(one.words), ensure_ascii=True)
                numbers = [one.likeness, one.sharpness, one.p_likeness, one.p_sharpness, one.p]
                writer.writerow([*first, one.side, one.sign, *numbers, one.coherent, one.sharp, words])
        return out.getvalue()

    def to_html(self) -> str:
        """A self-contained page in which layers, heads and directions are browsed."""
        return render_interpretation(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write ``.json``, ``.csv`` or ``.html``; never half a file.

        Raises:
            InputRefused: another suffix.
        """
        writers = {".json": self.to_json, ".csv": self.to_csv, ".html": self.to_html}
        write_by_suffix(path, writers)

    def __repr__(self) -> str:
        """Say it in one line."""
        return f"Interpretation({len(self)} directions, {len(self.coherent)} coherent)"

    def __str__(self) -> str:
        """Count by kind, and show what is most certain."""
        lines = [f"{self.source['path']}: {len(self)} directions"]
        for kind, count in self.counts.items():
            lines.append(
                f"  {kind:8}{count['directions']:6} directions, {count['coherent']:5} coherent, "
                f"{count['both']:5} of them separable, {count['sharp']:5} sharp   ({KINDS[kind]})"  # type: ignore[index]
            )
        lines += [f"note: {note}" for note in self.notes]
        best = [d for d in self.coherent if d.reliable][:SHOWN]
        return "\n".join([*lines, "", *map(str, best)] if best else lines)

    def _repr_html_(self) -> str:
        """Show the counts and the most certain directions in notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"

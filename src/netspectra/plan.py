"""Plans: what to do with each weight, what it is predicted to cost, on disk as JSON that people may edit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from netspectra.errors import InputRefused
from netspectra.version import __version__
from netspectra.written import strict_json, write_by_suffix

__all__ = ["Cost", "Decision", "Plan", "fingerprint"]

SCHEMA = 1


def fingerprint(parameters: Iterable[tuple[str, Any]]) -> str:
    """What tells one model from another: a hash of the names and shapes of its parameters, not of their numbers.

    Args:
        parameters: name and anything that has a shape, in the order of the model: its ``named_parameters()``.

    >>> import numpy as np
    >>> fingerprint([("a", np.zeros((4, 3)))]) == fingerprint([("a", np.zeros((3, 4)))])
    False
    """
    content = hashlib.sha256()
    for name, parameter in parameters:
        content.update(f"{name} {tuple(parameter.shape)}\n".encode())
    return content.hexdigest()[:16]


@dataclass(frozen=True)
class Cost:
    """What a site costs.

    Attributes:
        parameters: numbers.
        bytes: on disk and in memory.
        flops: multiplications a sample.
        milliseconds: a calibration batch, measured on this machine; None where it was not measured.
    """

    parameters: int = 0
    bytes: int = 0
    flops: float = 0.0
    milliseconds: float | None = None

    def __add__(self, other: Cost) -> Cost:
        """Both together; milliseconds only where both were measured."""
        known = self.milliseconds is not None and other.milliseconds is not None
        together = (self.milliseconds or 0.0) + (other.milliseconds or 0.0)
        return Cost(
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.flops + other.flops,
            together if known else None,
        )


@dataclass(frozen=True)
class Decision:
    """What happens to one site.

    Attributes:
        site: its name.
        kind: linear, convolution, mlp, ...
        modules: dotted names of the modules that are decided together.
        form: name of the form; ``dense`` where it is left alone.
        size: rank or width the form is fitted with.
        before: cost as it is.
        after: cost as it will be.
        loss: predicted increase of the loss, a sample; None where the method cannot predict it.
        reason: why this form, or why it is left alone.
    """

    site: str
    kind: str
    modules: tuple[str, ...]
    form: str
    size: int
    before: Cost
    after: Cost
    loss: float | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be done to a model, reviewable and editable before anything is written.

    Attributes:
        decisions: one a site, in the order of the model.
        verb: ``compress`` or ``quantize``.
        options: what was asked for, as plain data.
        totals: cost of the whole model, ``before`` and ``after``.
        held_out: measured on data that was not calibrated on: by name of the candidate, its error.
        frontier: size against predicted loss, as a list of points.
        notes: what a reader should know.
        finish: what refitting and healing did; speed of the whole model; task metrics. Empty until applied.
        fingerprint: of the model's modules: a plan is refused for another model; empty where no model was known.
    """

    decisions: tuple[Decision, ...]
    verb: str = "compress"
    options: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, Cost] = field(default_factory=dict)
    held_out: Mapping[str, Any] = field(default_factory=dict)
    frontier: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    finish: dict[str, Any] = field(default_factory=dict)
    _apply: Callable[[Any], Any] | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Decision]:
        """Iterate over the decisions."""
        return iter(self.decisions)

    def __len__(self) -> int:
        """Count the decisions."""
        return len(self.decisions)

    def __getitem__(self, site: str) -> Decision:
        """Find a decision by the site's name, or by a module's."""
        for decision in self.decisions:
            if site == decision.site or site in decision.modules:
                return decision
        raise KeyError(f"the plan decides nothing on {site!r}")

    def apply(self, model: Any) -> Any:
        """Replace the modules of a live model in place, and give it back.

        Raises:
            InputRefused: the plan came from a file, so it holds no fitted factors.
        """
        if self._apply is None:
            raise InputRefused(
                "this plan was read from a file and holds no factors: "
                "ns.compress(model, plan=plan, calibration=...) fits them"
            )
        return self._apply(model)

    def bound(self, apply: Callable[[Any], Any]) -> Plan:
        """The same plan, able to `apply` itself."""
        return replace(self, _apply=apply)

    def must_fit(self, model: str) -> None:
        """Refuse a model that the plan was not made for.

        Args:
            model: its `fingerprint`; nothing is compared where this one or the plan's is empty.

        Raises:
            InputRefused: they differ.
        """
        if self.fingerprint and model and self.fingerprint != model:
            raise InputRefused(
                "this model is not the one the plan was made for (other names or shapes of parameters); plan anew, or "
                'empty the "fingerprint" in the plan\'s file to use it all the same'
            )

    def bits(self, decision: Decision) -> float:
        """Bits that a number of the site as it was takes now, scales and corrections and the bias included."""
        return 8 * decision.after.bytes / max(decision.before.parameters, 1)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for strict JSON."""
        return {
            "schema": SCHEMA,
            "netspectra": __version__,
            "verb": self.verb,
            "fingerprint": self.fingerprint,
            "options": dict(self.options),
            "totals": {name: asdict(cost) for name, cost in self.totals.items()},
            "held_out": dict(self.held_out),
            "finish": dict(self.finish),
            "notes": list(self.notes),
            "decisions": [asdict(decision) for decision in self.decisions],
            "frontier": [dict(point) for point in self.frontier],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Undo `to_dict`.

        Raises:
            InputRefused: a field is missing or of the wrong kind.
        """
        if data.get("schema") != SCHEMA:
            raise InputRefused(f"this is no plan of schema {SCHEMA} (schema: {data.get('schema')!r})")
        try:
            decisions = tuple(
                Decision(
                    **{
                        **decision,
                        "modules": tuple(decision["modules"]),
                        "before": Cost(**decision["before"]),
                        "after": Cost(**decision["after"]),
                    }
                )
                for decision in data["decisions"]
            )
            return cls(
                decisions,
                data["verb"],
                data["options"],
                {name: Cost(**cost) for name, cost in data["totals"].items()},
                data["held_out"],
                tuple(data["frontier"]),
                tuple(data["notes"]),
                data["fingerprint"],
                dict(data.get("finish", {})),
            )
        except (KeyError, TypeError) as wrong:
            raise InputRefused(f"the plan lacks or misnames a field: {wrong}") from None

    def summary(self) -> list[str]:
        """A few lines for people: size, held-out quality, plain rounding beside it, speed."""
        before, after = (self.totals.get(f"model_{when}", Cost()) for when in ("before", "after"))
        lines = [f"{before.parameters:,} -> {after.parameters:,} parameters, {before.bytes:,} -> {after.bytes:,} bytes"]
        candidates = self.held_out.get("candidates", {})
        for name, found in candidates.items():
            kept = " (kept)" if name == self.held_out.get("kept") else ""
            lines.append(f"held out, {name}{kept}: {_measures(found)}")
        for name in ("plan", "final"):
            found = self.held_out.get("plan") if name == "plan" else self.finish.get("final")
            if found and (name == "plan" or found not in candidates.values()):
                lines.append(
                    f"held out, {'this plan' if name == 'plan' else 'refitted and healed'}: {_measures(found)}"
                )
        size = self.totals.get("selected_before", Cost()).bytes
        for name, found in self.held_out.get("rounding", {}).items():
            lines.append(
                f"for comparison, the same weights rounded to {name} ({found['bytes'] / max(size, 1):.0%} of their "
                f"bytes): {_measures(found)}"
            )
        for name, (was, now) in self.finish.get("task", {}).items():
            lines.append(f"{name}: {was:.4g} -> {now:.4g}")
        if "speed" in self.finish:
            s = self.finish["speed"]
            lines.append(
                f"measured: {s['before_ms']:.1f} -> {s['after_ms']:.1f} ms a batch, {s['ratio']:.2f} x "
                f"({s['low']:.2f} .. {s['high']:.2f})"
            )
        return [*lines, *self.notes]

    def __str__(self) -> str:
        """The summary, and every site that is not left alone."""
        bits = self.verb == "quantize"
        rows = [
            f"{d.site}  {d.form} {d.size}  {f'{self.bits(d):.2f} bits' if bits else _fewer(d)}"
            for d in self.decisions
            if d.form != "dense"
        ]
        return "\n".join([*self.summary(), *rows])

    def _repr_html_(self) -> str:
        """Show a table in notebooks."""
        from netspectra.report.plan_page import decisions_table

        return decisions_table(self.to_dict())

    def to_html(self) -> str:
        """The self-contained report as text: frontier, held-out quality, every decision."""
        from netspectra.report.plan_page import render_plan

        return render_plan(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write it by suffix: ``.json`` to edit and replay, ``.html`` to look at."""
        writers = {".json": self.to_json, ".html": self.to_html}
        write_by_suffix(path, writers)

    def to_json(self) -> str:
        """`to_dict` as text, for people to edit."""
        return strict_json(self.to_dict(), indent=1)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as wrong:
            raise InputRefused(f"{path}: is no readable plan: {wrong}") from None
        if not isinstance(data, dict):
            raise InputRefused(f"{path}: is no plan: JSON of another kind")
        return cls.from_dict(data)


def _fewer(decision: Decision) -> str:
    return f"{decision.before.parameters:,} -> {decision.after.parameters:,}"


def _measures(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items() if not name.startswith("bytes"))

"""From checkpoint to checkpoint with no live model: one weight in memory at a time, the rest copied byte for byte.

For networks larger than memory, and for files whose code is not at hand. Without data every layer keeps the same share,
since plain singular values cannot weigh layers against one another; with saved moments of a calibration the budget is
allocated by predicted loss, as for a live model. Every layer is a job of its own, for threads or for a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from netspectra.checkpoint import SHARD
from netspectra.errors import InputRefused
from netspectra.forms import FORMS
from netspectra.forms.place import Placed
from netspectra.live.saved import Saved, same_config, save_tensors
from netspectra.live.spill import Spill
from netspectra.methods import METHODS
from netspectra.plan import Cost, Decision, Plan
from netspectra.run import Run
from netspectra.run.local import LocalRun
from netspectra.verbs.compress.allocate import Budget, Choice, Component, Option, allocate, total, uniform
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.decide import budget_of
from netspectra.verbs.compress.onelayer import Layer, Making, Pack, made, offered, own_state
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import frontier
from netspectra.verbs.compress.redrawn import agreed
from netspectra.verbs.compress.replace import DENSE
from netspectra.verbs.compress.selected import Selected, left_alone, select
from netspectra.verbs.compress.workshop import Progress
from netspectra.weight import Source, TensorRef

__all__ = ["Fitted", "Stream", "compress_stream"]

# Options that say nothing where no network runs.
LIVE = (
    "probes",
    "backward",
    "checked",
    "held_out",
    "heal",
    "heal_rate",
    "refit",
    "spread",
    "seed",
    "timed",
    "never_slower",
)
SINGLE = frozenset({"linear", "embedding"})  # kinds of sites that are one layer


def compress_stream(
    source: Source,
    to: str | Path | None,
    options: CompressOptions,
    *,
    calibration: Calibration | None = None,
    plan: Plan | None = None,
    run: Run = LocalRun(),
    progress: Progress = lambda what, share: None,
    largest: int = SHARD,
) -> tuple[Plan, Saved | None]:
    """Compress a checkpoint's matrices, weight by weight; into factors, unless other forms are named.

    Peak memory is about ten times the largest selected matrix in its stored dtype (its decomposition in float64),
    whatever the checkpoint's size; every other tensor is copied in pieces. Factors wait in a temporary file beside the
    folder until it is their turn to be written, so that any engine may make them in any order.

    Args:
        source: an opened checkpoint of plain numbers, under the live model's names.
        to: the folder to write; None to plan only.
        options: a budget, a selection, a method.
        calibration: moments of an earlier run on the same model; by default there is no data.
        plan: an earlier plan whose decisions are to be used; forms of several layers are refused.
        run: the engine that maps over layers; the same bytes are written whichever it is. On other machines the
            calibration has to be one that was loaded from a file that they can read.
        progress: called with what is being done and its share, 0 ... 1.
        largest: bytes of one file.

    Raises:
        InputRefused: packed weights, names that are not the live model's, a budget that cannot be met.
    """
    stream = Stream.of(source, options, calibration, run, progress)
    plan = stream.given(plan) if plan is not None else stream.plan()
    if to is None:
        return plan, None
    fitted = stream.fitted(plan, Path(to))
    records = [Placed(name, one.form, one.spec) for name, one in fitted.items()]
    return plan, save_tensors(stream.tensors(fitted), records, to, source=source, describe=same_config(source),
                              largest=largest)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fitted:
    """What stands for a layer, its numbers in a temporary file.

    Attributes:
        form: its name.
        spec: what rebuilds it.
        tensors: by their names below the layer's.
        beside: of a file beside the model.
    """

    form: str
    spec: dict[str, object]
    tensors: Mapping[str, TensorRef]
    beside: Mapping[str, TensorRef]


@dataclass(frozen=True, eq=False)
class Stream:
    """A checkpoint on its way to another.

    Attributes:
        source: where from.
        found: its layers: what can be replaced, what is left.
        making: how it becomes something else.
        run: the engine.
        progress: is told what is being done.
    """

    source: Source
    found: Selected
    making: Making
    run: Run
    progress: Progress

    @classmethod
    def of(
        cls, source: Source, options: CompressOptions, calibration: Calibration | None, run: Run, progress: Progress
    ) -> Stream:
        """Find what can be replaced.

        Raises:
            InputRefused: see `compress_stream`.
        """
        forms = options.forms or ("factors",)
        if several := [name for name in forms if not FORMS[name].kinds & SINGLE]:
            raise InputRefused(f"{several[0]} needs a live model; from a stream layers are replaced one by one")
        if options.latency:
            raise InputRefused("a budget of milliseconds needs a live model that can be timed: leave --stream out")
        if calibration is not None:
            options = agreed(options, calibration)
        known = "two_sided" if calibration and calibration.outputs else "whitened" if calibration else "plain"
        travelling = replace(options, forms=forms, method=options.method or known, objective=None, task=None,
                             timed=False, never_slower=False)  # fmt: skip
        return cls(source, select(source, travelling, calibration), Making(travelling), run, progress)

    @property
    def layers(self) -> Mapping[str, Layer]:
        """What can be replaced, by module name."""
        return self.found.layers

    def without(self, reasons: Mapping[str, str]) -> Stream:
        """The same, some of its layers left alone: why, by name."""
        alone = {name: _left(self.layers[name], reason) for name, reason in reasons.items()}
        rest = {name: layer for name, layer in self.layers.items() if name not in alone}
        return replace(self, found=replace(self.found, layers=rest, left={**alone, **self.found.left}))

    def given(self, plan: Plan) -> Plan:
        """A plan from elsewhere.

        Raises:
            InputRefused: it is another model's, or it asks for what no stream does.
        """
        plan.must_fit(self.found.fingerprint)
        self._decided(plan)
        return plan

    def plan(self, budget: Callable[[Sequence[Layer]], Budget] | None = None, weighed: bool | None = None) -> Plan:
        """What every layer becomes: by predicted loss where the method can compare layers, else the same share of each.

        Args:
            budget: of the layers that can be decided on, instead of that of the options.
            weighed: whether losses of different layers are weighed against one another; None: where that tells.
        """
        offers = {}
        for weight, offer in self.run(partial(offered, making=self.making), self.layers.values()):
            offers[weight.name.removesuffix(".weight")] = offer
            self.progress("decomposing", len(offers) / len(self.layers))
        choices: list[tuple[Choice, ...]] = []
        for name, layer in self.layers.items():
            site = self.making.named(layer)
            rows = offers[name][1]
            if not rows:  # nothing is known of it: as without --stream, it is left out of the budget, too
                continue
            choices.append(tuple(Choice(site, form, size, cost, loss) for form, size, cost, loss in rows))
        parts = [Component(((row[0].site,),), {id(row[0].site): row}) for row in choices]
        if weighed is None:
            seen = any(layer.known is not None for layer in self.layers.values())
            weighed = METHODS[self.making.method].comparable and seen
        options = self.making.options
        limit = budget([self.layers[row[0].site.name] for row in choices]) if budget else budget_of(options, parts)
        chosen = allocate(parts, limit) if weighed else _alike(parts, limit, self.making.method)
        note = (
            "weighed by predicted loss, from saved moments" if weighed else
            "the same share of every layer: without moments of inputs and outputs layers cannot be compared"
        )  # fmt: skip
        first = {row[0].site.name: row[0] for row in choices}
        made = {
            one.site.name: _decision(first[one.site.name], one, offers[one.site.name][0], weighed)
            for option in chosen
            for one in option.choices
        }
        decided_on = (made.get(name) or _left(layer, offers[name][0]) for name, layer in self.layers.items())
        decisions = (*decided_on, *self.found.left.values())
        whole = Cost(self.source.parameters, sum(ref.nbytes for ref in self.source.tensors))
        dense, decided = total(d.before for d in made.values()), total(d.after for d in made.values())
        after = Cost(
            whole.parameters - dense.parameters + decided.parameters, whole.bytes - dense.bytes + decided.bytes
        )
        return Plan(
            decisions,
            options={
                **{k: v for k, v in options.to_dict().items() if k not in LIVE},
                "budget": limit.measure,
                limit.measure: limit.limit,
                "stream": True,
            },
            totals={"selected_before": dense, "selected_after": decided, "model_before": whole, "model_after": after},
            frontier=tuple(frontier(parts, options.axis)) if weighed and parts else (),
            notes=(note, "planned without a live model: nothing was tried on held-out data"),
            fingerprint=self.found.fingerprint,
        )

    def fitted(self, plan: Plan, to: Path, pack: Pack = own_state) -> dict[str, Fitted]:
        """What stands for every layer that the plan replaces; it waits in a nameless file beside the folder to be."""
        decided = self._decided(plan)
        spill = Spill(next(parent for parent in to.absolute().parents if parent.is_dir()))

        def kept(tensors: Mapping[str, Tensor]) -> dict[str, TensorRef]:
            return {key: _ref(key, tensor, spill) for key, tensor in tensors.items()}

        found: dict[str, Fitted] = {}
        work = partial(made, making=self.making, decided=decided, pack=pack)
        for weight, (spec, tensors, beside) in self.run(work, [self.layers[name] for name in decided]):
            name = weight.name.removesuffix(".weight")
            found[name] = Fitted(decided[name][0], spec, kept(tensors), kept(beside))
            self.progress("fitting", len(found) / len(decided))
        return {name: found[name] for name in decided}

    def _decided(self, plan: Plan) -> dict[str, tuple[str, int]]:
        """Form and size of every module that the plan replaces."""
        found = {}
        for decision in plan:
            if decision.form == DENSE:
                continue
            if decision.form not in FORMS or not FORMS[decision.form].kinds & SINGLE or len(decision.modules) != 1:
                raise InputRefused(
                    f"{decision.site}: {decision.form} needs a live model; from a stream layers are replaced one by one"
                )
            name = decision.modules[0]
            if name not in self.layers:
                raise InputRefused(
                    f"{name}: the plan replaces it, the checkpoint has no such plain matrix among the selected"
                )
            if decision.before.parameters != self.layers[name].numbers:
                raise InputRefused(
                    f"{name}: has {self.layers[name].numbers:,} numbers, in the plan {decision.before.parameters:,}: "
                    "the plan was made for another model"
                )
            found[name] = (decision.form, decision.size)
        return found

    def tensors(self, fitted: Mapping[str, Fitted]) -> list[TensorRef]:
        """Every tensor in the order of the source: as it lies there, or what takes its place."""
        return list(self._tensors(fitted))

    def _tensors(self, fitted: Mapping[str, Fitted]) -> Iterator[TensorRef]:
        biases = {f"{name}.bias" for name in fitted if self.layers[name].bias is not None}
        for ref in self.source.tensors:
            name = ref.name.removesuffix(".weight")
            if name in fitted and ref.name != name:
                for key, tensor in fitted[name].tensors.items():
                    yield replace(tensor, name=f"{name}.{key}")
            elif ref.name not in biases:
                yield ref


def _left(layer: Layer, reason: str) -> Decision:
    """A layer that is not decided on."""
    return left_alone(layer.layer, Cost(layer.numbers, layer.nbytes + layer.spare), reason)


def _alike(parts: Sequence[Component], budget: Budget, method: str) -> list[Option]:
    """The same share of every layer; a smaller one where some have no form so small.

    Raises:
        InputRefused: the budget cannot be met so.
    """
    if budget.measure == "loss":
        raise InputRefused(f"method {method} does not predict the model's loss: a loss budget needs --moments")
    measure = budget.measure
    before = sum(part.dense().of(measure) for part in parts)

    def spent(options: Sequence[Option]) -> float:
        return sum(option.of(measure) for option in options)

    low, high = 0.0, budget.limit / max(before, 1)
    best = uniform(parts, high, measure)
    if spent(best) <= budget.limit * (1 + 1e-9):
        return best
    best = uniform(parts, low, measure)
    if spent(best) > budget.limit:
        raise InputRefused(
            f"the budget of {budget.limit:.4g} {measure} cannot be met: the smallest forms need {spent(best):.4g}"
        )
    for _ in range(30):
        middle = (low + high) / 2
        trial = uniform(parts, middle, measure)
        if spent(trial) <= budget.limit:
            low, best = middle, trial
        else:
            high = middle
    return best


def _decision(dense: Choice, chosen: Choice, reason: str, weighed: bool) -> Decision:
    name = chosen.site.name
    if chosen.form == DENSE and not reason:
        reason = "left alone: the budget is spent better elsewhere"
    loss = chosen.loss if weighed or chosen.form == DENSE else None
    return Decision(name, chosen.site.kind, (name,), chosen.form, chosen.size, dense.cost, chosen.cost, loss, reason)


def _ref(name: str, tensor: Tensor, spill: Spill) -> TensorRef:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorRef(name, tuple(tensor.shape), dtype, spill.put(tensor))

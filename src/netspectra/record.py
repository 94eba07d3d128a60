"""What was found out about one weight: the only thing that reports, JSON, the monitor and comparisons share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from netspectra.linalg.operator import LowRank
    from netspectra.linalg.spectrum import Spectrum

__all__ = ["LEVELS", "Level", "OperatorSpectrum", "Record", "Skipped", "Value", "Verdict"]

Level = Literal["ok", "note", "warn", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warn", "error")


class Value(float):
    """A number that says how sure it is: use it as a float, read ``error``, ``low``, ``high`` and ``note``.

    A value that the data cannot give is ``Value.unknown(reason)``: NaN in arithmetic, null in JSON.

    >>> v = Value(2.5, low=2.1, high=2.9)
    >>> v + 1, v.known, v.low
    (3.5, True, 2.1)
    >>> Value.unknown("only 8 values in the tail").known
    False
    """

    error: float | None
    low: float | None
    high: float | None
    note: str
    detail: Mapping[str, Any]

    def __new__(
        cls,
        value: float,
        *,
        error: float | None = None,
        low: float | None = None,
        high: float | None = None,
        note: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> Value:
        """Make a value; ``detail`` holds further named findings (sample size, p-value)."""
        self = super().__new__(cls, value)
        self.error, self.low, self.high, self.note, self.detail = error, low, high, note, dict(detail or {})
        return self

    @classmethod
    def unknown(cls, why: str) -> Value:
        """No number, and why."""
        return cls(math.nan, note=why)

    @property
    def known(self) -> bool:
        """Whether there is a finite number."""
        return math.isfinite(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with all that belongs to it."""
        return (_value, (float(self), self.error, self.low, self.high, self.note, dict(self.detail)))


def _value(value: float, error: Any, low: Any, high: Any, note: str, detail: Mapping[str, Any]) -> Value:
    return Value(value, error=error, low=low, high=high, note=note, detail=detail)


@dataclass(frozen=True)
class Verdict:
    """A sentence with its evidence: which rule spoke, how serious it is, what to do."""

    rule: str
    level: Level
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A tensor that was not analysed, and why.

    ``routine`` ones were never expected to have a spectrum (vectors, indices, buffers); ``--strict`` accepts them.
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    routine: bool = False


@dataclass(frozen=True, eq=False)
class OperatorSpectrum:
    """Singular values of a convolution as the linear map it applies: not those of its unfolded kernel.

    Attributes:
        spectrum: every value, or the largest alone (``how`` is ``partial``).
        grid: spatial size of the input it was computed for.
        upper: a number the spectral norm cannot exceed; infinity where none was computed.
        note: what had to be assumed.
    """

    spectrum: Spectrum
    grid: tuple[int, ...]
    upper: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Record:
    """One weight's findings.

    Attributes:
        name: the weight's name, exactly as in the checkpoint.
        kind: linear, embedding, conv2d, ...
        shape: (m, n) of the matrix, outputs by inputs.
        dtype: name of the stored dtype.
        parameters: how many numbers the weight has; a tied weight counts once.
        spectrum: singular values of the matrix; for a convolution of the unfolded (out, in * kernel) matrix.
        metrics: name of the metric -> `Value`.
        aliases: other names of the same tensor.
        operator: of a convolution, what is known of the map itself.
        verdicts: what the rules say.
        notes: what a reader should know about this row.
        step: training step, for records of a monitor.
        load: gives the operator again, for `svd`; absent in records that were read from a file.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    parameters: int
    spectrum: Spectrum
    metrics: Mapping[str, Value]
    aliases: tuple[str, ...] = ()
    operator: OperatorSpectrum | None = None
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    step: int | None = None
    load: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def level(self) -> Level:
        """The most serious level among the verdicts."""
        return LEVELS[max((LEVELS.index(verdict.level) for verdict in self.verdicts), default=0)]

    def svd(self, k: int | None = None) -> LowRank:
        """The leading ``k`` singular triplets of the weight (all by default); see `netspectra.svd`."""
        if self.load is None:
            raise ValueError(f"{self.name}: only its spectrum was kept; analyze the model or checkpoint for factors")
        from netspectra.linalg.product import Factored, product_svd
        from netspectra.linalg.svd import svd

        operator = self.load()
        if isinstance(operator, Factored):
            return product_svd(operator.B, operator.A, operator.scale, k=k)
        return svd(operator.dense(), k=k)

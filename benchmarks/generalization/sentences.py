"""The four sentences of the founding text as hypotheses: what stands for the claim, what it should go with, which way.

Written down before any correlation was computed. A sentence is *supported* where Psi has the predicted sign beyond
Holm's 5 % in both data sets and is at least 0.2, *contradicted* where the sign is the other one in both, *no relation
of note* where neither is sure or both are below 0.2, *mixed* otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 0.2


@dataclass(frozen=True)
class Hypothesis:
    """One way to put a sentence to the test.

    Attributes:
        sentence: what is claimed.
        predictor: column that stands for the left side.
        target: column that stands for the right side.
        sign: of the correlation that the sentence predicts.
        noisy_only: only networks with label noise are asked.
    """

    sentence: str
    predictor: str
    target: str
    sign: int
    noisy_only: bool = False


CONCENTRATED = "concentrated: sensitive to few directions"
FLAT = "flat: more expressive"
WIDE = "wide: may over-fit"
POWER = "power law predicts generalization"

HYPOTHESES = (
    Hypothesis(CONCENTRATED, "share_of_first", "push_ratio", +1),
    Hypothesis(CONCENTRATED, "share_of_first", "noise_drop", +1),
    Hypothesis(FLAT, "flatness", "feature_dimension", +1),
    Hypothesis(FLAT, "flatness", "train_accuracy", +1, noisy_only=True),
    Hypothesis(FLAT, "verdict flat", "feature_dimension", +1),
    Hypothesis(WIDE, "spread", "gap", +1),
    Hypothesis(WIDE, "alpha", "gap", -1),
    Hypothesis(WIDE, "verdict wide", "gap", +1),
    Hypothesis(POWER, "alpha", "gap", +1),
    Hypothesis(POWER, "alpha", "test_accuracy", -1),
    Hypothesis(POWER, "alpha_hat", "gap", +1),
    Hypothesis(POWER, "log_alpha_norm", "gap", +1),
    Hypothesis(POWER, "alpha_distance", "gap", +1),
    Hypothesis(POWER, "erg_gap_size", "gap", +1),
    Hypothesis(POWER, "verdict heavy-tailed", "gap", -1),
)

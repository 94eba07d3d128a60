"""Corrections beside a bias that takes the error of the inputs' mean: predicted exactly, and right for other means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.forms.codes import Coding, Stored, corrected

POSITIONS = 3.0


def problem(seed: int, m: int, n: int) -> tuple[Stored, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(200, n, generator=g, dtype=torch.float64) @ torch.randn(n, n, generator=g, dtype=torch.float64)
    gradients = torch.randn(100, m, generator=g, dtype=torch.float64)
    mean = 4 * torch.randn(n, generator=g, dtype=torch.float64)
    W = torch.randn(m, n, generator=g, dtype=torch.float64)
    return Stored(W, X.mT @ X / 200, gradients.mT @ gradients / 100, mean), (2 * W).round() / 2


def left_of(stored: Stored, coded: torch.Tensor, found, rank: int) -> torch.Tensor:
    return stored.W - coded - found.left[:, :rank] @ found.right[:rank]


@given(st.integers(0, 10**6), st.sampled_from([(12, 20), (20, 12)]))
@settings(max_examples=20, deadline=None)
def test_predictions_are_about_the_mean(seed, shape):
    stored, coded = problem(seed, *shape)
    found = corrected(stored, coded, Coding(), 4, POSITIONS)
    for rank in range(5):
        E = left_of(stored, coded, found, rank)
        wanted = POSITIONS * float(((stored.rows @ E) * (E @ stored.columns)).sum())
        assert found.losses[rank] == pytest.approx(wanted, rel=1e-8)


def test_the_error_of_any_mean_along_that_of_the_calibration_is_small():
    stored, coded = problem(0, 12, 20)
    ours = left_of(stored, coded, corrected(stored, coded, Coding(), 4, POSITIONS), 4)
    bare = Stored(stored.W, stored.columns, stored.rows)
    centred = left_of(stored, coded, corrected(bare, coded, Coding(), 4, POSITIONS), 4)
    assert float((ours @ stored.mean).norm()) < 0.5 * float((centred @ stored.mean).norm())

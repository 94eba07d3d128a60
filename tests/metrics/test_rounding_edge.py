"""The noise that rounding leaves in a spectrum: its edge, what lies above, and when nothing is said."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.lattice import coded_form
from netspectra.linalg.rounding import Grid, nearest
from netspectra.linalg.values import svdvals
from netspectra.metrics import METRICS, evaluate


def edge(w: torch.Tensor):
    return evaluate([METRICS["rounding_edge"]], svdvals(w), w)["rounding_edge"]


def gaussian(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@given(m=st.integers(40, 120), n=st.integers(40, 120), levels=st.sampled_from([7, 15]), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_the_noise_itself_stays_below_the_edge(m, n, levels, seed):
    w = gaussian(m, n, seed)
    step = float(w.abs().max()) / levels
    rounded = (w / step).round() * step
    found = edge(rounded)
    assert float(found) == pytest.approx(step / 12**0.5 * (m**0.5 + n**0.5), rel=1e-3)
    noise = np.linalg.svd((rounded - w).double().numpy(), compute_uv=False)[0]
    assert 0.85 * float(found) < noise < 1.1 * float(found)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group", [32, 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_of_groups_and_rows_are_found(bits, group, symmetric):
    w = gaussian(64, 256) * torch.linspace(0.5, 2, 64)[:, None]
    coded = nearest(w, Grid(bits, group, symmetric), search=False)
    found = edge(coded.numbers(torch.float32))
    assert found.known
    step = coded.scale.double().repeat_interleave(256 // coded.scale.shape[1], 1)
    variance = step.square() / 12
    wanted = float(variance.sum(1).max()) ** 0.5 + float(variance.sum(0).max()) ** 0.5
    assert float(found) == pytest.approx(wanted, rel=0.15)  # a group may not reach its own largest level
    error = float((coded.numbers() - w).norm() / coded.numbers().norm())
    assert found.detail["noise"] == pytest.approx(error, rel=0.2)


def test_a_low_rank_matrix_keeps_its_values_above():
    w = gaussian(128, 20) @ gaussian(20, 96, 1)
    step = float(w.abs().max()) / 7
    found = edge((w / step).round() * step)
    assert (found.detail["above"], found.detail["of"]) == (20, 96)


def test_nothing_is_said_of_floating_numbers():
    w = gaussian(60, 80)
    for plain in (w, w.bfloat16(), w.half(), w.double(), torch.zeros(4, 4), torch.eye(8), torch.ones(1, 5)):
        assert not edge(plain).known


def test_fifteen_steps_are_not_taken_for_255():
    w = gaussian(32, 64)
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    step = (high - low) / 15
    form = coded_form(((w - low) / step).round() * step + low, "float32")
    assert form is not None
    torch.testing.assert_close(2 * form.half, step, rtol=1e-4, atol=0)

"""The randomised twin and dead units: what depends on the matrix itself."""

import numpy as np
import pytest
import torch

from netspectra.linalg.svd import svdvals
from netspectra.metrics import METRICS, evaluate
from netspectra.metrics.twin import shuffled


def measured(name, w, seed=0):
    return evaluate([METRICS[name]], svdvals(w), w, seed=(seed,))[name]


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "bfloat16", "float16", "float8_e4m3fn", "complex64", "complex128"]
)
def test_the_twin_holds_the_same_entries(dtype):
    w = torch.randn(6, 15, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    twin = shuffled(w, np.random.default_rng(0))
    assert twin.dtype == w.dtype and twin.shape == (15, 6)
    wide = torch.complex128 if w.is_complex() else torch.float64
    ours, theirs = (np.sort(x.to(wide).numpy().reshape(-1)) for x in (w, twin))
    assert np.array_equal(ours, theirs) and not torch.equal(w.T.to(wide), twin.to(wide))


def test_no_global_generator_moves_and_the_matrix_stays():
    w = torch.randn(30, 40)
    before, torch_state = w.clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two, other = measured("twin_distance", w, 1), measured("twin_distance", w, 1), measured("twin_distance", w, 2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(w, before)
    assert one == two and one.detail == two.detail and one.detail != other.detail


def test_structure_is_told_from_size():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal((100, 120)))
    ramp = torch.linspace(0.1, 3, 100, dtype=torch.float64)[:, None] * noise
    assert measured("twin_distance", noise) < 0.08 < 0.15 < measured("twin_distance", ramp)


def test_a_single_large_entry_stays_a_spike_of_the_twin():
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((100, 120)))
    w[3, 5] = 60
    assert measured("twin_distance", w).detail["spikes"] == 1
    low = w.clone()
    low[3, 5] = 0
    low += 3.0 / 10 * torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
    assert measured("spikes", low) >= 1 and measured("twin_distance", low).detail["spikes"] == 0


def test_dead_rows_and_columns_are_counted():
    w = torch.randn(50, 70, generator=torch.Generator().manual_seed(0))
    w[[3, 4]] = 0
    w[:, 9] *= 1e-6
    assert measured("dead_units", w).detail == {"rows": 2, "columns": 1}
    for scale in (1e-30, 1e30):
        assert measured("dead_units", w * scale).detail == {"rows": 2, "columns": 1}
    assert measured("dead_units", w.bfloat16()) == 3

"""Frequent Directions against what is known of the whole matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.sketch import FrequentDirections


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 60), st.integers(2, 12), st.integers(1, 200))
def test_no_direction_lacks_more_than_the_bound(seed, n, size, count):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, n)) * np.geomspace(1, 1e-3, n)
    sketch = FrequentDirections(n, size)
    for part in np.array_split(rows, 7):
        sketch.add_(part)
    values, V = sketch.leading(2 * size)
    lacking = np.linalg.eigvalsh(rows.T @ rows - (V * values) @ V.T)
    top = np.linalg.norm(rows) ** 2
    assert lacking.min() >= -1e-9 * top
    assert lacking.max() <= sketch.lost + 1e-9 * top
    tail = np.sort(np.linalg.svd(rows, compute_uv=False))[::-1] ** 2
    k = size // 2
    assert sketch.lost <= tail[k:].sum() / (size - k) + 1e-9 * top


def test_low_rank_is_found_exactly():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 40))
    values, V = FrequentDirections(40, 8).add_(rows).leading(3)
    exact = np.linalg.svd(rows, compute_uv=False)[:3] ** 2
    assert values == pytest.approx(exact, rel=1e-9)
    assert np.linalg.norm(rows - rows @ V @ V.T) < 1e-6 * np.linalg.norm(rows)

"""Leading singular values followed through changes: never above the truth, near it, and unmoved by odd matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.tracking import LeadingValues, norms


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64]))
def test_a_lower_bound_that_converges(m, n, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(m, n, generator=generator, dtype=dtype)
    exact = float(torch.linalg.svdvals(A.double())[0])
    leading, found = LeadingValues(), 0.0
    for _ in range(12):
        found = leading.look({"a": A})["a"]
        assert found <= exact * (1 + 1e-5)
    # mean error of q power steps whatever the gap: 0.87 ln(n) / (2 q - 2), here 0.146 (Kuczynski & Wozniakowski 1992)
    assert found > 0.85 * exact


def test_it_follows_a_weight_that_drifts():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(64, 48, generator=generator)
    leading = LeadingValues()
    for _ in range(60):
        A += 0.02 * torch.randn(64, 48, generator=generator) + 0.01
        found = leading.look({"a": A})["a"]
    assert found == pytest.approx(float(torch.linalg.svdvals(A)[0]), rel=0.01)


def test_blocks_complex_narrow_and_many_at_once():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(5, 6, 4, generator=generator)
    complexes = torch.randn(8, 6, dtype=torch.complex64, generator=generator)
    narrow = torch.randn(30, 20, generator=generator).bfloat16()
    leading = LeadingValues()
    for _ in range(30):
        found = leading.look({"blocks": blocks, "complex": complexes, "narrow": narrow})
    assert found["blocks"] == pytest.approx(float(torch.linalg.svdvals(blocks).max()), rel=1e-3)
    assert found["complex"] == pytest.approx(float(torch.linalg.svdvals(complexes)[0]), rel=1e-3)
    assert found["narrow"] == pytest.approx(float(torch.linalg.svdvals(narrow.float())[0]), rel=1e-3)


def test_zeros_and_what_is_not_finite():
    leading = LeadingValues()
    broken = torch.eye(3)
    broken[0, 0] = float("nan")
    found = leading.look({"zero": torch.zeros(3, 4), "broken": broken})
    assert found["zero"] == 0
    assert found["broken"] != found["broken"]
    mended = leading.look({"zero": torch.ones(3, 4), "broken": torch.eye(3)})
    assert mended["zero"] == pytest.approx(12**0.5, rel=1e-4)
    assert mended["broken"] == pytest.approx(1.0, rel=1e-4)


def test_a_better_vector_is_taken_up():
    A = torch.diag(torch.linspace(1.0, 1.01, 50))
    leading = LeadingValues()
    first = leading.look({"a": A})["a"]
    leading.adopt("a", torch.eye(50)[-1])
    assert first < leading.look({"a": A})["a"] == pytest.approx(1.01)


def test_norms_of_different_kinds_at_once():
    tensors = [torch.ones(4), torch.ones(9, dtype=torch.float64), torch.full((16, 16), 0.5).bfloat16()]
    assert norms(tensors) == pytest.approx([2.0, 3.0, 8.0])
    assert norms([]) == []

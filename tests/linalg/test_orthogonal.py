"""Random matrices and kernels whose singular values are all one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.conv import conv_operator
from netspectra.linalg.orthogonal import delta_orthogonal, semi_orthogonal


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_every_singular_value_is_one(m, n, seed):
    Q = semi_orthogonal(m, n, torch.Generator().manual_seed(seed))
    assert Q.shape == (m, n) and torch.allclose(torch.linalg.svdvals(Q), torch.ones(min(m, n), dtype=torch.float64))
    again = semi_orthogonal(m, n, torch.Generator().manual_seed(seed))
    assert torch.equal(Q, again)


def test_signs_are_uniform():
    """Without the signs of R the first entry would always be negative."""
    generator = torch.Generator().manual_seed(0)
    firsts = torch.tensor([float(semi_orthogonal(3, 3, generator)[0, 0]) for _ in range(200)])
    assert 70 < int((firsts > 0).sum()) < 130


@pytest.mark.parametrize("shape", [(4, 3, 3), (3, 4, 5), (4, 4, 3, 3), (5, 2, 3, 3, 3)])
def test_delta_kernels_make_isometries_on_any_grid(shape):
    kernel = delta_orthogonal(shape, torch.Generator().manual_seed(1))
    grid = (5, 4, 3)[: len(shape) - 2]
    A = conv_operator(kernel, grid, padding="same").dense()
    s = torch.linalg.svdvals(A)
    assert torch.allclose(s[s > 1e-9], torch.ones(int((s > 1e-9).sum()), dtype=torch.float64))
    assert int((s > 1e-9).sum()) == min(shape[:2]) * torch.tensor(grid).prod()

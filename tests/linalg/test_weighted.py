"""Leading directions of a weighed error by products, against LAPACK's eigenvectors: share recovered, and honesty."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg import weighted
from netspectra.linalg.weighted import leading, weighed


@pytest.fixture(scope="module")
def large():
    """Every side of 100 is large, as long as the test module runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "LARGE", 100)
        yield


def moment(n, decay, generator):
    """A second moment whose eigenvalues fall by 10^decay."""
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return (Q * torch.logspace(0, -decay, n, dtype=torch.float64)) @ Q.mT


def error(m, n, decay, seed, *, inputs="full", outputs="full"):
    g = torch.Generator().manual_seed(seed)
    sides = []
    for size, kind in ((n, inputs), (m, outputs)):
        full = moment(size, decay, g)
        sides.append({"full": full, "diagonal": full.diagonal(), "none": None}[kind])
    return torch.rand(m, n, generator=g, dtype=torch.float64) - 0.5, *sides


def dense(E, A, G, rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "LARGE", 10**9)
        return leading(E, A, G, rank)


KINDS = st.sampled_from(["full", "diagonal", "none"])


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 4), decay=st.floats(0.5, 4), tall=st.booleans(),
       inputs=KINDS, outputs=KINDS)  # fmt: skip
def test_what_is_recovered_is_all_but_a_thousandth_and_is_told(large, seed, rank, decay, tall, inputs, outputs):
    m, n = (500, 400) if tall else (400, 500)
    E, A, G = error(m, n, decay, seed, inputs=inputs, outputs=outputs)
    left, right, s, whole = leading(E, A, G, rank)
    _, _, best, all_of_it = dense(E, A, G, rank)
    assert left.shape == (m, rank) and right.shape == (rank, n) and s.shape == (rank,)
    assert whole == pytest.approx(all_of_it, rel=1e-9)
    assert (s[:-1] >= s[1:] - 1e-9 * s[0]).all()
    for r in range(1, rank + 1):
        taken = float(s[:r].sum())
        assert taken <= float(best[:r].sum()) * (1 + 1e-9)
        assert whole - taken == pytest.approx(weighed(E - left[:, :r] @ right[:r], A, G), rel=1e-6)
    flat = inputs == outputs == "none"  # noise without moments has no leading part: the hardest, and worth least
    assert float(s.sum()) >= float(best.sum()) * (0.97 if flat else 0.99)


def test_where_there_is_a_leading_part_it_is_found_exactly(large):
    E, A, G = error(400, 500, 1, 0)
    g = torch.Generator().manual_seed(1)
    E += (
        10
        * torch.randn(400, 3, generator=g, dtype=torch.float64)
        @ torch.randn(3, 500, generator=g, dtype=torch.float64)
    )
    left, right, s, _ = leading(E, A, G, 3)
    other, rows, best, _ = dense(E, A, G, 3)
    torch.testing.assert_close(s, best, rtol=1e-10, atol=0)
    torch.testing.assert_close(left @ right, other @ rows, rtol=0, atol=1e-8 * float((other @ rows).abs().max()))


def test_nothing_at_all_and_too_little_for_the_rank(large):
    E, A, G = error(400, 500, 1, 0)
    left, right, s, whole = leading(torch.zeros_like(E), A, G, 3)
    assert whole == 0 and not s.any() and not (left @ right).any()
    thin = E[:, :1] @ E[:1]
    left, right, s, whole = leading(thin, A, G, 3)
    assert float(s[0]) == pytest.approx(whole, rel=1e-9)
    torch.testing.assert_close(left @ right, thin, rtol=0, atol=1e-9)


def test_the_same_every_time_and_no_global_draws(large):
    E, A, G = error(400, 500, 2, 3)
    before = torch.get_rng_state()
    first, second = leading(E, A, G, 4), leading(E, A, G, 4)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    assert torch.equal(torch.get_rng_state(), before)

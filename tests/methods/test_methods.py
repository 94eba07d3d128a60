"""Every method against the theoretical optimum of its own norm, also where moments are singular."""

import numpy as np
import pytest
import torch

from netspectra.errors import InputRefused
from netspectra.linalg.moments import Moments, load_moments, root, save_moments, shrunk
from netspectra.methods import METHODS


def case(seed: int):
    """A random weight with moments that may be singular: few tokens, dead inputs, condition 1e12."""
    rng = np.random.default_rng(seed)
    m, n = rng.integers(2, 40, 2)
    W = rng.standard_normal((m, n)) * np.logspace(0, -rng.integers(0, 4), n)
    tokens = int(rng.choice([max(1, n // 3), n, 4 * n]))
    X = rng.standard_normal((tokens, n)) * np.logspace(0, -rng.choice([0.0, 3.0, 6.0]), n)
    if seed % 3 == 0:
        X[:, rng.random(n) < 0.3] = 0
    g = rng.standard_normal((int(rng.choice([max(1, m // 2), 4 * m])), m)) * np.logspace(0, -rng.choice([0.0, 3.0]), m)
    A, G = torch.from_numpy(X.T @ X / tokens), torch.from_numpy(g.T @ g / len(g))
    return torch.from_numpy(W), A, shrunk(G, 0.05), int(rng.integers(0, min(m, n) + 1))


def loss(D: torch.Tensor, A: torch.Tensor | None, G: torch.Tensor | None) -> float:
    """tr(G D A D^T) as the squared norm of L^T D R, which keeps its digits."""
    left = D if G is None else root(G).mT @ D
    return float((left if A is None else left @ root(A)).square().sum())


@pytest.mark.parametrize("seed", range(200))
def test_two_sided_and_whitened_reach_the_tail(seed):
    W, A, G, rank = case(seed)
    for name, g in (("whitened", None), ("two_sided", G)):
        found = METHODS[name].compute(W, A, G)
        M = (W if g is None else root(g).mT @ W) @ root(A)
        s = torch.linalg.svdvals(M).square()
        tail, whole = float(s[rank:].sum()), float(s.sum())
        left, right = found.factors(rank)
        assert left.shape == (W.shape[0], rank) and right.shape == (rank, W.shape[1])
        assert loss(W - left @ right, A, g) <= (1 + 1e-9) * tail + 1e-24 * whole
        assert found.losses[rank] == pytest.approx(tail, rel=1e-7, abs=1e-15 * whole)


def test_plain_is_eckart_young_and_losses_fall():
    W = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = METHODS["plain"].compute(W, None, None)
    left, right = found.factors(3)
    s = torch.linalg.svdvals(W)
    assert float((W - left @ right).square().sum()) == pytest.approx(float(s[3:].square().sum()), rel=1e-12)
    assert (np.diff(found.losses) <= 0).all() and found.losses[-1] == 0
    assert torch.allclose(left.norm(dim=0), right.norm(dim=1))


@pytest.mark.parametrize("name", ["asvd", "whitened", "fisher", "two_sided"])
def test_methods_say_what_they_lack(name):
    with pytest.raises(InputRefused, match="needs moments of"):
        METHODS[name].compute(torch.eye(3, dtype=torch.float64), None, None)


def test_embeddings_are_weighed_by_frequency():
    """A diagonal A weighs the columns: rows of the table that never occur cost nothing."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(4, 30, dtype=torch.float64, generator=g)
    A = torch.zeros(30, dtype=torch.float64)
    A[:3] = 1.0
    found = METHODS["two_sided"].compute(W, A, torch.eye(4, dtype=torch.float64))
    left, right = found.factors(3)
    assert torch.allclose((left @ right)[:, :3], W[:, :3])


def test_moments_sum_save_and_load(tmp_path):
    X = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments.zeros(6).add_(X[:20]).add_(X[20:])
    assert torch.allclose(moments.covariance, torch.cov(X.T, correction=0))
    save_moments({"a": moments}, tmp_path / "m.safetensors", {"model": "x"})
    again, about = load_moments(tmp_path / "m.safetensors")
    assert torch.equal(again["a"].total, moments.total) and again["a"].count == 50 and about == {"model": "x"}


def test_other_files_are_refused(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"not that")
    with pytest.raises(InputRefused, match="no safetensors file"):
        load_moments(tmp_path / "m.safetensors")

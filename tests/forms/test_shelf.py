"""What is let go is made again, the same; what waits on disk comes back bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import netspectra as ns
from netspectra.forms.shelf import Shelf, held_bytes
from netspectra.linalg.moments import Moments, folded, root, unfolded
from netspectra.live.spill import Spill
from netspectra.verbs.compress import calibrate, quality, sites


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_half_a_symmetric_matrix_is_all_of_it(n, seed):
    S = torch.randn(2, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    S = S + S.mT
    assert torch.equal(unfolded(folded(S)), S) and folded(S).shape == (2, (n + 1) // 2, n + 1)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.booleans())
def test_moments_are_those_of_the_rows(n, tokens, grouped):
    shape = (3, tokens, n) if grouped else (tokens, n)
    X = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    found = Moments.zeros(n, groups=3 if grouped else 1).add_(X[..., :1, :]).add_(X[..., 1:, :])
    torch.testing.assert_close(found.total, X.mT @ X)
    other = found.copy().add_(X)
    torch.testing.assert_close(other.total, 2 * found.total)


@pytest.mark.parametrize("rank", [1, 5, 8])
def test_roots_of_regular_and_singular_matrices(rank):
    X = torch.randn(8, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = X @ X.mT
    torch.testing.assert_close(root(A) @ root(A).mT, A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_spilled_tensors_come_back(dtype):
    spill = Spill()
    tensors = [torch.arange(12).reshape(3, 4).to(dtype), torch.zeros((), dtype=dtype), torch.ones(5, dtype=dtype)[::2]]
    loads = [spill.put(tensor) for tensor in tensors]
    del spill
    for _ in range(2):
        for tensor, load in zip(tensors, loads, strict=True):
            assert torch.equal(load(), tensor) and load().dtype == dtype


def planned():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 6))
        batches = [torch.randn(32, 24) for _ in range(3)]
    plan = ns.compress(model, keep=0.5, calibration=batches)
    return plan.to_dict(), plan.apply(model)(batches[0])


def test_plans_need_no_memory_of_what_was_derived(monkeypatch):
    """With a shelf for one thing, and moments and signals on disk, the plan and the model are the same."""
    known, answer = planned()
    made = []
    monkeypatch.setattr(sites, "Shelf", lambda: made.append(Shelf(room=1)) or made[-1])
    monkeypatch.setattr(calibrate, "LARGEST_MOMENTS", 0)
    monkeypatch.setattr(quality, "LARGE", 0)
    again, other = planned()
    assert again == known and torch.equal(answer, other)
    assert all(len(shelf._held) <= 1 for shelf in made)


def test_bytes_of_nested_things():
    assert held_bytes((torch.zeros(3), [Moments.zeros(2)], "text", 5)) == 12 + 8 * 3 + 8 * 2

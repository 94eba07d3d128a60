"""Windows one after another: never a false alarm too many, and drifts add up."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

import netspectra as ns
from netspectra.doors.drift import load_state, save_state
from netspectra.errors import InputRefused
from netspectra.verbs.drift.betting import BETS, Bettors, Ranks, _factors, binned


def rows(rng, count, shift=0.0):
    return rng.standard_normal((count, 5)) + shift


@pytest.fixture(scope="module")
def reference():
    return ns.drift(None, rows(np.random.default_rng(0), 1500))


def test_ranks_are_uniform_and_independent():
    rng = np.random.default_rng(0)
    ranks = Ranks(binned(rng.standard_normal((40, 1))), np.random.default_rng(1))
    p = np.concatenate([ranks.ranks(binned(rng.standard_normal((50, 1)))) for _ in range(80)])[:, 0]
    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.06


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 20), st.integers(1, 4))
def test_ranks_are_what_counting_gives(seed, before, count, scores):
    rng = np.random.default_rng(seed)
    old, new = (binned(rng.integers(-3, 4, (c, scores)) / 2.0) for c in (before, count))
    p = Ranks(old, np.random.default_rng(seed)).ranks(new)
    ties = np.random.default_rng(seed).random((count, scores))
    for i in range(count):
        bag = np.concatenate([old, new[: i + 1]])
        want = ((bag > new[i]).sum(0) + ties[i] * (bag == new[i]).sum(0)) / len(bag)
        assert p[i] == pytest.approx(want)


def test_a_block_is_the_same_as_row_by_row():
    rng = np.random.default_rng(0)
    old, new = binned(rng.standard_normal((30, 3))), binned(rng.standard_normal((20, 3)))
    block, single = (Ranks(old, np.random.default_rng(5)) for _ in range(2))
    assert block.ranks(new) == pytest.approx(np.concatenate([single.ranks(row[None]) for row in new]))
    assert (block.counts == single.counts).all()


def test_every_bet_is_fair():
    p = (np.arange(200_000) + 0.5) / 200_000
    factors = _factors(p)
    assert (factors > 0).all()
    assert factors.mean(0) == pytest.approx(np.ones(BETS), abs=3e-3)


def test_capital_seldom_grows_by_chance():
    bettors = Bettors(4000)
    bettors.bet(np.random.default_rng(0).random((300, 4000)))
    assert (bettors.top >= np.log(20)).mean() < 0.05
    assert np.exp(bettors.log).mean() < 1.3


def test_quiet_streams_stay_quiet_and_a_small_drift_adds_up(reference):
    rng = np.random.default_rng(1)
    stream = reference.sequential()
    quiet = [stream.test(rows(rng, 20)) for _ in range(60)]
    assert not any(one.alarm for one in quiet) and quiet[-1].window == 60 and quiet[-1].rows == 1200
    small = np.r_[0.5, 0, 0, 0, 0]
    windows = [rows(rng, 20, small) for _ in range(40)]
    found = [stream.test(window) for window in windows]
    assert found[-1].alarm and 55 <= found[-1].since <= 75
    assert found[-1].alarmed == next(one.window for one in found if one.alarm)
    assert sum(reference.test(window).alarm for window in windows[:5]) < 5  # one by one they do not show it
    assert "since about window" in str(found[-1])
    json.dumps(found[-1].to_dict(), allow_nan=False)


def test_any_way_of_cutting_windows_gives_the_same_evidence(reference):
    data = rows(np.random.default_rng(3), 300, 0.2)
    one, other = reference.sequential(), reference.sequential()
    one.test(data)
    for part in np.array_split(data, [64, 128, 192, 256]):
        other.test(part)
    assert one.evidence.log_e == pytest.approx(other.evidence.log_e)
    assert one.evidence.p == pytest.approx(other.evidence.p)


def test_it_goes_on_another_day(reference, tmp_path):
    rng, path = np.random.default_rng(2), tmp_path / "state.safetensors"
    windows = [rows(rng, 30, 0.1) for _ in range(10)]
    whole, first = reference.sequential(), reference.sequential()
    for window in windows:
        whole.test(window)
    for window in windows[:4]:
        first.test(window)
    save_state(first, path)
    second = load_state(reference.sequential(), path)
    for window in windows[4:]:
        second.test(window)
    assert second.evidence == whole.evidence
    with pytest.raises(InputRefused, match="was begun with alpha"):
        load_state(reference.sequential(alpha=0.01), path)
    with pytest.raises(InputRefused, match="another reference"):
        load_state(ns.drift(None, np.random.default_rng(0).standard_normal((100, 9))).sequential(), path)


def test_memory_does_not_grow(reference):
    stream = reference.sequential()
    sizes = set()
    for seed in range(3):
        stream.test(rows(np.random.default_rng(seed), 496))
        sizes.add(sum(array.nbytes for array in stream.saved()[0].values()))
    assert len(sizes) == 1

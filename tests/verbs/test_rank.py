"""Ranking checkpoints: means over what all know, honest ties and unknowns, agreement between metrics."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.verbs.rank import CAUTION, RANKED, _agreement, rank

MANY = settings(max_examples=40, deadline=None)


def noise(m, n, seed):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def model(scale=1.0, seed=0, layers=4):
    return {f"layer.{i}.weight": scale * noise(24, 30, 100 * seed + i) for i in range(layers)}


def diagonal(sigmas):
    return ns.analyze({f"{i}.w": torch.diag(torch.tensor(s, dtype=torch.float64)) for i, s in enumerate(sigmas)})


@MANY
@given(st.lists(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), min_size=2, max_size=5))
def test_ranks_are_those_of_the_means(tops):
    found = rank(
        {f"m{i}": diagonal([[t, 0.001] for t in row]) for i, row in enumerate(tops)}, metrics=["spectral_norm"]
    )
    [row] = found.metrics
    assert np.allclose(row.values, [np.mean(t) for t in tops])
    assert np.allclose(row.ranks, rankdata(row.values))
    assert sorted(row.order, key=lambda name: row.values[found.candidates.index(name)]) == list(row.order)
    assert len(row.held) == len(tops) - 1 and all(0 <= share <= 1 for share in row.held)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def four():
    return {f"m{i}": ns.analyze(model(1 + 0.1 * i, i)) for i in range(4)}


@MANY
@given(order=st.permutations(range(4)), seed=st.integers(0, 5))
def test_the_order_of_the_candidates_does_not_matter(four, order, seed):
    plain = rank(four, seed=seed)
    mixed = rank({f"m{i}": four[f"m{i}"] for i in order}, seed=seed)
    for one, other in zip(plain.metrics, mixed.metrics, strict=True):
        assert one.order == other.order
        assert dict(zip(plain.candidates, one.ranks, strict=True)) == dict(
            zip(mixed.candidates, other.ranks, strict=True)
        )
    assert plain.agreement == pytest.approx(mixed.agreement)


def test_scaling_is_seen_by_sizes_and_not_by_shapes():
    found = rank([ns.analyze(model(scale)) for scale in (3, 1, 2)], metrics=["frobenius_norm", "stable_rank"])
    assert found["frobenius_norm"].ranks == (3, 1, 2) and found["frobenius_norm"].held == (1, 1)
    assert np.ptp(found["stable_rank"].values) < 1e-6
    assert found.paired and found.caution == CAUTION and CAUTION in str(found)


def test_an_unknown_value_in_one_is_left_out_of_all():
    """A layer of zeros has no stable rank: the other candidate's large one must not count either."""
    first, second = model(1, 0), model(1, 1)
    first["layer.3.weight"] = torch.zeros(24, 30)
    second["layer.3.weight"] = torch.eye(24, 30)
    row = rank({"a": ns.analyze(first), "b": ns.analyze(second)}, metrics=["stable_rank"])["stable_rank"]
    assert row.weights == (3, 3) and row.unknown == (1, 1)
    assert max(row.values) < 24


def test_a_metric_unknown_everywhere_has_no_rank():
    found = rank([ns.analyze(model(1, seed)) for seed in (0, 1)], metrics=["alpha", "spectral_norm"])
    assert found["alpha"].values == (None, None) == found["alpha"].ranks
    assert found["alpha"].order == found["alpha"].held == () and found.agreement is None
    assert "-" in str(found)


def test_different_architectures_are_told():
    found = rank([ns.analyze(model(layers=3)), ns.analyze(model(layers=5))])
    assert not found.paired and "same weights" in str(found) and "same weights" in found._repr_html_()
    assert {metric.name for metric in found.metrics} == set(RANKED)


def test_agreement_is_kendalls_w():
    sizes = rank([ns.analyze(model(scale)) for scale in (3, 1, 2)], metrics=["frobenius_norm", "spectral_norm"])
    assert sizes.agreement == 1 and 0.8 < sizes.chance < 1  # of three, two random rankings often nearly agree
    reverse = rank([diagonal([[1, 1, x, x]]) for x in (0.2, 0.5, 0.8)], metrics=["condition_number", "effective_rank"])
    assert reverse["condition_number"].ranks == (3, 2, 1) and reverse["effective_rank"].ranks == (1, 2, 3)
    assert reverse.agreement == 1


@MANY
@given(st.permutations([1.0, 2.0, 3.0, 4.0]))
def test_agreement_of_two_rankings_follows_spearmans(order):
    """For two rankings W = (1 + |rho|) / 2, the second turned to go with the first."""
    plain = [1.0, 2.0, 3.0, 4.0]
    rho = float(np.corrcoef(plain, order)[0, 1])
    assert _agreement([plain, order]) == pytest.approx((1 + abs(rho)) / 2)


def test_run_files_and_names(tmp_path):
    for name, scale in (("a", 1), ("b", 2)):
        ns.analyze(model(scale), runfile=tmp_path / f"{name}.run")
    found = rank([tmp_path / "a.run", tmp_path / "b.run"], metrics=["spectral_norm"])
    assert found.candidates == ("1: dict", "2: dict") and found["spectral_norm"].ranks == (1, 2)
    found.save(tmp_path / "ranking.json")
    assert json.loads((tmp_path / "ranking.json").read_text())["metrics"][0]["order"] == ["1: dict", "2: dict"]
    with pytest.raises(InputRefused, match="json"):
        found.save(tmp_path / "ranking.txt")


def test_what_cannot_be_ranked_is_refused():
    one = ns.analyze(model())
    with pytest.raises(InputRefused, match="at least two"):
        rank([one])
    with pytest.raises(InputRefused, match="was not measured"):
        rank([one, ns.analyze(model(), metrics=["count"])])
    with pytest.raises(InputRefused, match="metrics"):
        rank([one, one], metrics=["nonsense"])
    with pytest.raises(KeyError, match="was not ranked"):
        rank([one, one], metrics=["k90"])["k50"]


def test_names_are_inert_in_notebooks():
    shown = rank({"<script>": ns.analyze(model()), "b": ns.analyze(model(2))})._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown

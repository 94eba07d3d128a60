"""One window against a reference: calibrated, two-sided, and it says where."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.verbs.drift.basis import Coordinates, Learner
from netspectra.verbs.drift.permutation import combined, exchanges, ranked, stepped_down
from netspectra.verbs.drift.statistics import STATISTICS, Pooled

MIX = np.random.default_rng(99).standard_normal((12, 12))


def rows(rng, count):
    return rng.standard_normal((count, 12)) @ MIX


@pytest.fixture(scope="module")
def reference():
    return ns.drift(None, rows(np.random.default_rng(0), 1500))


def test_false_alarms_keep_their_level():
    low = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        found = ns.drift(None, rows(rng, 150), directions=6, seed=seed).test(rows(rng, 25), permutations=99)
        low.append([found.p, *(s.p for s in found.layers[0].statistics)])
    shares = (np.array(low) <= 0.05).mean(0)
    assert (shares > 0.01).all() and (shares < 0.09).all(), shares  # 0.05 within four standard errors


@pytest.mark.parametrize(
    ("what", "change", "sharpest"),
    [
        ("mean", lambda x: x + 2.0 * MIX[3], {"distribution", "every direction"}),
        ("more spread", lambda x: 1.5 * x, {"spread", "spectrum", "residual"}),
        ("less spread", lambda x: 0.7 * x, {"spread", "spectrum", "residual"}),
    ],
)
def test_drifts_are_seen_whichever_way_they_go(reference, what, change, sharpest):
    found = reference.test(change(rows(np.random.default_rng(1), 100)))
    assert found.alarm and found.p <= 0.01
    least = min(s.p for s in found.layers[0].statistics)
    assert sharpest & {s.name for s in found.layers[0].statistics if s.p == least}


def test_residual_sees_less_as_well_as_more():
    rng = np.random.default_rng(0)
    scale = np.r_[np.full(4, 5.0), np.ones(36)]
    reference = ns.drift(None, rng.standard_normal((2000, 40)) * scale, directions=4)
    basis = reference.layers["rows"].basis
    for factor, side in ((0.8, -1), (1.25, 1)):
        window = rng.standard_normal((60, 40)) * scale
        z = (window - basis.centre) / basis.scale
        inside = z @ basis.V @ basis.V.T
        changed = (inside + factor * (z - inside)) * basis.scale + basis.centre
        found = reference.test(changed)
        residual = next(s for s in found.layers[0].statistics if s.name == "residual")
        assert residual.p <= 0.01 and np.sign(np.log(residual.effect)) == side
        assert residual.effect == pytest.approx(factor**2, rel=0.15)


def test_it_says_which_layer_direction_and_column():
    rng = np.random.default_rng(3)
    quiet, loud = rng.standard_normal((2, 1200, 10))
    reference = ns.drift(None, {"quiet": quiet, "loud": loud})
    window = rng.standard_normal((80, 10))
    window[:, 7] += 1.5
    found = reference.test({"quiet": rng.standard_normal((80, 10)), "loud": window})
    assert found.layer == "loud" and found.layers[0].adjusted <= 0.01 < found.layers[1].adjusted
    first, second = found.layers[0].columns[:2]
    assert first.column == "7" and first.shift == pytest.approx(1.5, abs=0.4) and first.p <= 0.01 < second.p
    assert found.layers[0].shift == pytest.approx(1.5, abs=0.4)
    moved = found.layers[0].directions[0]
    assert moved.p <= 0.01 and "7" in [name for name, _ in moved.columns]
    assert all(d.p > 0.01 for d in found.layers[1].directions)


def test_a_sketched_reference_sees_what_an_exact_one_sees():
    rng = np.random.default_rng(4)
    factors = rng.standard_normal((8, 300))
    data = rng.standard_normal((1500, 8)) @ factors * 3 + rng.standard_normal((1500, 300))
    window = rng.standard_normal((60, 8)) @ factors * 3 + rng.standard_normal((60, 300)) + 2.0 * factors[0]
    exact, sketched = (ns.drift(None, data, directions=8, exact=n) for n in (1024, 100))
    assert sketched.layers["rows"].basis.sketched and not exact.layers["rows"].basis.sketched
    cosines = np.linalg.svd(exact.layers["rows"].basis.V.T @ sketched.layers["rows"].basis.V, compute_uv=False)
    assert cosines.min() > 0.99
    assert exact.test(window).alarm and sketched.test(window).alarm


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(3, 30), st.integers(2, 20))
def test_statistics_are_what_they_say(seed, k, m, n):
    rng = np.random.default_rng(seed)
    labels = exchanges(m, n, 19, seed)
    sides = [Coordinates(rng.standard_normal((c, k)), rng.standard_normal(c), np.zeros(c)) for c in (m, n)]
    pooled = Pooled.of(*sides, labels)
    energy = {s.name: s for s in STATISTICS}["distribution"].measure(pooled).ranked
    for b, label in enumerate(labels[:3]):
        x, y = pooled.along[~label], pooled.along[label]
        want = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
        assert energy[b] == pytest.approx(want, abs=1e-4)
    change = {s.name: s for s in STATISTICS}["residual"].measure(pooled)
    assert change.ranked[0] == pytest.approx(abs(sides[1].beside.mean() - sides[0].beside.mean()))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(5, 60))
def test_adjusted_p_values(seed, tests, count):
    p = ranked(np.random.default_rng(seed).standard_normal((tests, count)))
    adjusted = stepped_down(p)
    assert (adjusted >= p[:, 0] - 1e-12).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p[:, 0], kind="stable")]) >= 0).all()
    assert adjusted.min() == pytest.approx((p.min(0) <= p[:, 0].min()).mean())
    assert 1 / count <= combined(p)[0] <= 1


def test_combining_is_exact_over_all_permutations():
    """Any column could be the truth: exactly the share a of them has p <= a."""
    p = ranked(np.random.default_rng(0).standard_normal((7, 200)))
    assert np.sort(combined(p)) == pytest.approx(np.arange(1, 201) / 200)


def test_a_basis_is_learnt_in_any_chunks():
    data = rows(np.random.default_rng(5), 700)
    learners = [Learner(12, directions=5, exact=1024) for _ in range(2)]
    learners[0].add_(data)
    for part in np.array_split(data, [256, 300, 301, 650]):
        learners[1].add_(part)
    whole, parts = (learner.basis() for learner in learners)
    z = (data - parts.centre) / parts.scale
    values = np.linalg.eigvalsh(np.cov(z.T, bias=True))[::-1]
    assert parts.variances == pytest.approx(values[:5], rel=1e-6)
    assert parts.total == pytest.approx(values.sum(), rel=1e-6)
    assert whole.V.shape == parts.V.shape == (12, 5)


def test_a_constant_column_that_comes_alive_is_seen():
    rng = np.random.default_rng(6)
    data, window = rng.standard_normal((800, 6)), rng.standard_normal((50, 6))
    data[:, 2], window[:, 2] = 3.0, 3.0
    reference = ns.drift(None, data)
    assert not reference.test(window).alarm
    window[:25, 2] = 9.0
    assert reference.test(window).alarm


def test_same_input_same_bytes_and_no_touch_of_global_random_numbers(reference, tmp_path):
    window = rows(np.random.default_rng(1), 40)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, second = reference.test(window).to_json(), reference.test(window).to_json()
    assert first == second
    assert (np.random.get_state()[1] == before[0]).all() and torch.equal(torch.get_rng_state(), before[1])  # noqa: NPY002
    for name in ("a", "b"):
        ns.drift(None, rows(np.random.default_rng(0), 1500)).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_saved_and_loaded_it_says_the_same(reference, tmp_path):
    path, window = tmp_path / "reference.safetensors", rows(np.random.default_rng(1), 40) + 1
    reference.save(path)
    again = ns.DriftReference.load(path)
    assert path.stat().st_size < 200_000
    assert again.test(window).to_dict() == reference.test(window).to_dict()
    assert str(again) == str(reference)
    for suffix in (".json", ".html"):
        again.test(window).save(tmp_path / f"found{suffix}")
    assert json.loads((tmp_path / "found.json").read_text())["alarm"]
    with pytest.raises(InputRefused, match=r"\.json and \.html"):
        again.test(window).save(tmp_path / "found.txt")


class Odd(nn.Module):
    """Norm statistics, dropout, a list of blocks, a mask, a dictionary as output."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.5)) for _ in range(3))
        self.norm = nn.BatchNorm1d(16)

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        pooled = (x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return {"logits": self.norm(pooled)}


def token_batches(rng, count, low=0, high=50):
    for _ in range(count):
        lengths = rng.integers(2, 9, 32)
        mask = torch.tensor(np.arange(8) < lengths[:, None]).long()
        yield {"input_ids": torch.tensor(rng.integers(low, high, (32, 8))), "attention_mask": mask}


def test_a_live_model_is_watched_and_left_alone():
    torch.manual_seed(0)
    model, rng = Odd().train(), np.random.default_rng(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reference = ns.drift(model, lambda: token_batches(rng, 20))
    assert list(reference.layers) == ["layers.0", "layers.1", "layers.2", "output"]
    assert not reference.test(token_batches(rng, 2)).alarm
    assert reference.test(token_batches(rng, 2, high=25)).alarm
    assert model.training and all(not m._forward_hooks for m in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_padding_says_nothing():
    torch.manual_seed(0)
    model, rng = Odd(), np.random.default_rng(0)
    batch = next(token_batches(rng, 1))
    from netspectra.verbs.drift.activations import activations

    other = {"input_ids": torch.where(batch["attention_mask"] > 0, batch["input_ids"], 7)}
    other["attention_mask"] = batch["attention_mask"]
    one, two = (next(activations(model, [b], ["layers.1"], []))["layers.1"] for b in (batch, other))
    assert one.shape == (32, 16) and np.allclose(one, two)


def test_images_keep_channels_and_loaders_lose_labels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    images, labels = torch.randn(200, 1, 8, 8), torch.zeros(200)
    reference = ns.drift(model, [(images[:100], labels[:100]), (images[100:], labels[100:])], layers=["1", "output"])
    assert reference.layers["1"].basis.V.shape[0] == 6
    assert reference.test(images[:50] * 3).alarm


def test_odd_models_and_inputs(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(80, 4)
    reference = ns.drift(model, x, layers=["0", "output"])
    np.savez(tmp_path / "x.npz", x[:20].numpy())
    assert reference.test(tmp_path / "x.npz").p == reference.test(x[:20], name="x").p == reference.test((x[:20],)).p
    with pytest.raises(InputRefused, match="0: 20 of 20 rows hold NaN or Inf"):
        reference.test(x[:20] * torch.nan)
    reference.save(tmp_path / "r")
    assert ns.DriftReference.load(tmp_path / "r", model).test(x[:20]).p == reference.test(x[:20]).p
    with pytest.raises(InputRefused, match="is it the one that the reference was made with"):
        ns.DriftReference.load(tmp_path / "r", nn.ReLU()).test(x[:20])


def test_numbers_beyond_reason_are_an_alarm(reference):
    window = rows(np.random.default_rng(0), 30)
    window[:20] = 1e200
    found = reference.test(window)
    assert found.alarm and found.p <= 0.01
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((10, 3)), "10 rows says nothing"),
        (np.full((100, 3), np.nan), "hold NaN or Inf"),
        ({"a": np.zeros((50, 2)), "b": np.zeros((40, 2))}, "same rows"),
        (np.array([["a"] * 3] * 50), "give numbers"),
        (3, "holds no rows"),
        ([np.zeros((50, 2)), np.zeros((50, 3))], "change their layers or widths"),
    ],
)
def test_references_that_are_refused(data, message):
    with pytest.raises(InputRefused, match=message):
        ns.drift(None, data)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (np.zeros((10, 5)), "rows of 5 numbers, the reference has 12"),
        (np.zeros((1, 12)), "has 1 rows"),
        ({"other": np.zeros((10, 12))}, "no layer 'rows'"),
        (np.full((5, 12), np.inf), "hold NaN or Inf"),
    ],
)
def test_windows_that_are_refused(reference, window, message):
    with pytest.raises(InputRefused, match=message):
        reference.test(window)


def test_layers_and_options_are_checked(reference):
    with pytest.raises(InputRefused, match="no layer is called 'nowhere'"):
        ns.drift(nn.Linear(4, 2), torch.randn(50, 4), layers="nowhere")
    with pytest.raises(InputRefused, match="no layer matches"):
        ns.drift(None, {"a": np.zeros((50, 2))}, layers="b")
    with pytest.raises(TypeError, match="no option reserv"):
        ns.drift(None, np.zeros((50, 2)), reserv=3)
    with pytest.raises(InputRefused, match="alpha"):
        reference.test(np.zeros((5, 12)), alpha=0.0)


def test_rows_without_any_variance_do_not_break_it():
    reference = ns.drift(None, np.ones((100, 3)))
    assert not reference.test(np.ones((10, 3))).alarm
    assert reference.test(np.ones((10, 3)) * 2).alarm


def test_wide_rows_and_many_windows_take_bounded_memory():
    import tracemalloc

    rng = np.random.default_rng(0)

    def chunks(count):
        return (rng.standard_normal((256, 1500)).astype(np.float32) for _ in range(count))

    peaks = []
    for count in (6, 12):
        tracemalloc.start()
        ns.drift(None, chunks(count), directions=8, reserve=300)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 1e6

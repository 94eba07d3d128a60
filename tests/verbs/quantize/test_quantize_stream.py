"""Quantization without a live model: what the live way gives, in folders that load, by any engine."""

import json
from collections import OrderedDict
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from benchmarks.compress.architectures import ARCHITECTURES, made
from safetensors.torch import load_file, save_file

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.forms.coded import CodedModule
from netspectra.plan import Plan
from netspectra.run.local import LocalRun, serial
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.planning import quantize
from netspectra.verbs.quantize.streamed import quantize_stream
from tests.live.test_coverage import answer


def folder(tmp_path, name):
    pytest.importorskip("transformers")
    made(name).save_pretrained(tmp_path / "in", max_shard_size="60KB")
    return ns.open(tmp_path / "in")


def batches(name):
    return [ARCHITECTURES[name].batch(seed, 8) for seed in range(3)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_same_codes_as_a_live_model_with_these_moments(name, tmp_path):
    source, options = folder(tmp_path, name), QuantizeOptions(bits=5, group=32, ranks=(0, 4))
    model = made(name)
    _, shop = quantize(model, options, batches(name))
    shop.calibration.save(tmp_path / "moments.safetensors")
    known = Calibration.load(tmp_path / "moments.safetensors")
    plan, saved = quantize_stream(source, tmp_path / "out", options, calibration=known)
    assert plan.verb == "quantize" and plan.frontier and "saved moments" in " ".join(plan.notes)
    assert len({(decision.form, decision.size) for decision in plan}) > 2
    live, _ = quantize(model, options, calibration=known, plan=plan)
    live.apply(model)
    if name == "gpt2":  # fused query, key and value are one layer, as in the live model; tied ones are said to stay
        fresh, _ = quantize(made(name), options, calibration=known)
        assert {d.site for d in plan} == {d.site for d in fresh}
        for tied in ("transformer.wte", "lm_head"):
            assert plan[tied] == fresh[tied] and "tied to" in plan[tied].reason
    loaded = ns.load(tmp_path / "out")
    coded = {name: module for name, module in model.named_modules() if isinstance(module, CodedModule)}
    assert len(coded) == saved.replacements
    for name, module in coded.items():
        other = loaded.get_submodule(name)
        assert (other.bits, other.rank) == (module.bits, module.rank)
        if module.bits < 16:
            assert torch.equal(other.coded().codes, module.coded().codes), name
        torch.testing.assert_close(other.weight, module.weight, rtol=0, atol=1e-6)
        if module.bias is not None:
            torch.testing.assert_close(other.bias, module.bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "whisper"])
def test_without_data_every_layer_gets_the_same_bits(name, tmp_path):
    source, batch = folder(tmp_path, name), ARCHITECTURES[name].batch(0, 2)
    dense = answer(made(name), batch)
    errors = []
    for bits in (3.9, 4.9, 8.95):
        options = QuantizeOptions(bits=bits, group=32, ranks=(0,), exclude=("*relative*",))
        plan, saved = quantize_stream(source, tmp_path / "out", options, largest=50_000)
        found = answer(ns.load(tmp_path / "out"), batch)
        errors.append(float((found - dense).norm() / dense.norm()))
        forms = {decision.form for decision in plan if decision.form != "dense"}
        assert forms == {f"int{int(bits)}"}
        assert "same bits" in " ".join(plan.notes)
        recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
        assert {layer["bits"] for layer in recipe["layers"].values()} == {int(bits)}
        header = saved.bytes - plan.totals["model_after"].bytes
        assert 0 < header < 400 * len(source.tensors) + 2000, "the plan says what is written"
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_a_dequantized_stream_is_the_same_network(tmp_path):
    source = folder(tmp_path, "bert")
    options, batch = QuantizeOptions(bits=4.6, group=32), ARCHITECTURES["bert"].batch(0, 2)
    plan, _ = quantize_stream(source, tmp_path / "ours", options)
    _, saved = quantize_stream(source, tmp_path / "plain", options, "dequantized", plan=plan)
    assert saved.stock and saved.replacements == 0
    before = {ref.name: ref for ref in source.tensors}
    after = {ref.name: ref for ref in ns.open(tmp_path / "plain").tensors}
    assert {name: (ref.shape, ref.dtype) for name, ref in before.items()} == {
        name: (ref.shape, ref.dtype) for name, ref in after.items()
    }
    plain = type(made("bert")).from_pretrained(tmp_path / "plain").eval()
    torch.testing.assert_close(answer(plain, batch), answer(ns.load(tmp_path / "ours"), batch), rtol=1e-5, atol=1e-6)


def test_compressed_tensors_are_those_of_a_live_model(tmp_path):
    """Config, codes, scales and the adapter of corrections, byte for byte as `emit` writes them."""
    from netspectra.verbs.quantize.emit import emit

    source = folder(tmp_path, "llama")
    options, model = QuantizeOptions(bits=6, group=32, symmetric=True, ranks=(0, 4), levels=(16, 8, 4)), made("llama")
    plan, saved = quantize_stream(source, tmp_path / "streamed", options, "compressed-tensors")
    assert any(decision.size for decision in plan) and any("PEFT" in note for note in saved.notes)
    live, _ = quantize(model, options, plan=plan)
    live.apply(model)
    emit(model, tmp_path / "live", "compressed-tensors", plan=live, source=source)
    configs = [json.loads((tmp_path / at / "config.json").read_text()) for at in ("streamed", "live")]
    for config in configs:
        for group in config["quantization_config"]["config_groups"].values():
            group["targets"].sort()
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    adapters = [tmp_path / at / "correction" for at in ("streamed", "live")]
    texts = [(at / "adapter_config.json").read_text() for at in adapters]
    assert texts[0] == texts[1]
    for files in ([at / "adapter_model.safetensors" for at in adapters],
                  [tmp_path / at / "model.safetensors" for at in ("streamed", "live")]):  # fmt: skip
        first, second = map(load_file, files)
        assert set(first) == set(second)
        assert all(torch.equal(first[name], second[name]) for name in first)


def lying(folder, module):
    """Bytes of a layer in all files of a folder."""
    files = [load_file(path) for path in folder.rglob("*.safetensors")]
    stem = f"{module}."
    return sum(value.nbytes for file in files for name, value in file.items()
               if name.removeprefix("base_model.model.").startswith(stem))  # fmt: skip


def test_for_compressed_tensors_only_what_they_pack_is_decided_on(tmp_path):
    source, options = folder(tmp_path, "bert"), QuantizeOptions(bits=5, group=32, ranks=(0, 4), symmetric=True)
    plan, saved = quantize_stream(source, tmp_path / "out", options, "compressed-tensors")
    coded = [decision for decision in plan if decision.form != "dense"]
    linears = {name for name, module in made("bert").named_modules() if isinstance(module, torch.nn.Linear)}
    assert coded and {decision.site for decision in coded} <= linears
    for decision in plan:
        if "embeddings" in decision.site:
            assert decision.before == decision.after and "type Linear only" in decision.reason
            assert lying(tmp_path / "out", decision.site) == decision.after.bytes
    assert not any("decoded" in note for note in saved.notes)
    with pytest.raises(InputRefused, match="below 16 bits only"):
        quantize_stream(source, None, replace(options, levels=(16,)), "compressed-tensors")
    with pytest.raises(InputRefused, match="without --form"):
        quantize_stream(source, None, replace(options, forms=("factors",)), "compressed-tensors")


@pytest.mark.parametrize("kind", ["netspectra", "compressed-tensors", "dequantized"])
def test_the_recipe_says_what_lies_in_the_file(kind, tmp_path):
    """A mixed plan: what compressed-tensors cannot pack is there in full, and neither recipe nor plan says less."""
    source, options = folder(tmp_path, "bert"), QuantizeOptions(bits=5, group=32, ranks=(0, 4), symmetric=True)
    given, _ = quantize_stream(source, None, options)
    mixed = [d.site for d in given if "embeddings" in d.site and d.form != "dense"]
    assert mixed
    plan, _ = quantize_stream(source, tmp_path / "out", options, kind, plan=given)
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    sites = [decision.site for decision in plan if decision.kind != "left"]
    assert recipe["bytes"]["after"] == sum(lying(tmp_path / "out", site) for site in sites)
    for site, layer in recipe["layers"].items():
        assert layer["bytes"] == lying(tmp_path / "out", site), site
    if kind == "netspectra":
        assert recipe["bytes"]["after"] == recipe["bytes"]["planned"] == given.totals["selected_after"].bytes
    if kind == "compressed-tensors":
        for site in mixed:
            assert plan[site].after.bytes == lying(tmp_path / "out", site) >= plan[site].before.bytes
            assert "decoded" in plan[site].reason
        more = sum(plan[site].after.bytes - given[site].after.bytes for site in mixed)
        for total in ("selected_after", "model_after"):
            assert plan.totals[total].bytes - given.totals[total].bytes == more > 0


def test_a_live_recipe_says_what_lies_in_the_file(tmp_path):
    from netspectra.verbs.quantize.emit import FORMATS, emit

    pytest.importorskip("transformers")
    model = made("bert")
    plan, _ = quantize(model, QuantizeOptions(bits=5, group=32, ranks=(0, 4), symmetric=True))
    plan.apply(model)
    kinds = [kind for kind in FORMATS if kind != "gguf" and (kind != "torchao" or find_spec("torchao"))]
    for kind in kinds:
        emit(model, tmp_path / kind, kind, plan=plan)
        recipe = json.loads((tmp_path / kind / "recipe.json").read_text())
        sites = [decision.site for decision in plan if decision.kind != "left"]
        assert recipe["bytes"]["after"] == sum(lying(tmp_path / kind, site) for site in sites)
        assert (recipe["bytes"]["after"] == recipe["bytes"]["planned"]) == (kind == "netspectra")


def test_a_stream_builds_the_skeleton_once(tmp_path, monkeypatch):
    from netspectra.live import build

    source, options, built = folder(tmp_path, "bert"), QuantizeOptions(bits=5, symmetric=True, ranks=(0,)), []
    config = build._config
    monkeypatch.setattr(build, "_config", lambda *args: built.append(args) or config(*args))
    quantize_stream(source, tmp_path / "out", options, "compressed-tensors")
    assert len(built) == 1


def test_a_plan_of_another_model_is_refused(tmp_path):
    source, options = folder(tmp_path, "bert"), QuantizeOptions(bits=5, ranks=(0,))
    live, _ = quantize(made("bert", seed=3), options)
    quantize_stream(source, tmp_path / "out", options, plan=live)  # another training of the same network
    streamed, _ = quantize_stream(source, None, options)
    quantize(made("bert", seed=3), options, plan=streamed)
    other, _ = quantize(made("llama"), options)
    for act in (
        lambda plan: quantize_stream(source, tmp_path / "no", options, plan=plan),
        lambda plan: quantize_stream(source, None, options, plan=plan),
        lambda plan: quantize(made("bert"), options, plan=plan),
    ):
        with pytest.raises(InputRefused, match="not the one the plan was made for"):
            act(other)
        with pytest.raises(InputRefused, match="not the one the plan was made for"):
            act(replace(live, fingerprint="0123456789abcdef"))
        act(replace(live, fingerprint=""))


def test_without_a_config_shapes_tell_a_plan_of_another_model(tmp_path):
    save_file(made("perceptron").state_dict(), tmp_path / "m.safetensors")
    source, options = ns.open(tmp_path / "m.safetensors"), QuantizeOptions(bits=5, ranks=(0,))
    plan, _ = quantize_stream(source, None, options)
    assert plan.fingerprint == ""
    live, _ = quantize(made("perceptron"), options)
    quantize_stream(source, None, options, plan=live)
    quantize(made("perceptron"), options, plan=plan)
    wider = {name: torch.cat([value, value]) for name, value in made("perceptron").state_dict().items()}
    save_file(wider, tmp_path / "w.safetensors")
    with pytest.raises(InputRefused, match="made for another model"):
        quantize_stream(ns.open(tmp_path / "w.safetensors"), tmp_path / "out", options, plan=live)
    assert not (tmp_path / "out").exists()


def counted(rows, name):
    """A network that begins with a table, and a calibration of it."""
    torch.manual_seed(0)
    names = {name: torch.nn.Embedding(rows, 24), "out": torch.nn.Linear(24, 40)}
    model = torch.nn.Sequential(OrderedDict(names))
    _, shop = quantize(model, QuantizeOptions(bits=5), [torch.randint(0, rows, (200,))])
    return model, shop.calibration


def test_moments_tell_that_a_table_is_an_embedding(tmp_path):
    """Without a config names say little; the moments of a table are counts."""
    found = []
    for name in ("words", "embed"):
        model, known = counted(90, name)
        save_file(model.state_dict(), tmp_path / "m.safetensors")
        plan, _ = quantize_stream(ns.open(tmp_path / "m.safetensors"), tmp_path / name,
                                  QuantizeOptions(bits=5, group=8, ranks=(0, 4)), calibration=known)  # fmt: skip
        made_ = load_file(tmp_path / name / "model.safetensors")
        found.append((sorted((d.kind, d.form, d.size, d.loss) for d in plan),
                      {key.replace(name, "table"): value for key, value in made_.items()}))  # fmt: skip
    assert found[0][0] == found[1][0] and {kind for kind, *_ in found[0][0]} == {"embedding", "linear"}
    assert set(found[0][1]) == set(found[1][1])
    assert all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())


def test_moments_tell_that_a_matrix_is_no_embedding(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(OrderedDict(time_embed=torch.nn.Linear(24, 40)))
    _, shop = quantize(model, QuantizeOptions(bits=5), [torch.randn(200, 24)])
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    source = ns.open(tmp_path / "m.safetensors")
    plan, _ = quantize_stream(source, None, QuantizeOptions(bits=5), calibration=shop.calibration)
    assert [(decision.kind, decision.site) for decision in plan] == [("linear", "time_embed")]


def test_moments_of_another_table_are_refused(tmp_path):
    _, known = counted(90, "words")
    model, _ = counted(91, "words")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(InputRefused, match="has 91 inputs, the moments know 90"):
        quantize_stream(ns.open(tmp_path / "m.safetensors"), None, QuantizeOptions(bits=5), calibration=known)


def test_any_engine_writes_the_same_bytes(tmp_path):
    source, options = folder(tmp_path, "bert"), QuantizeOptions(bits=5, group=32, ranks=(0, 4))
    made_ = []
    for name, run in (("one", serial), ("two", LocalRun(2))):
        plan, _ = quantize_stream(source, tmp_path / name, options, run=run)
        made_.append((plan.to_json(), [file.read_bytes() for file in sorted((tmp_path / name).glob("*.*"))]))
    assert made_[0] == made_[1]


def test_layers_whose_gradients_are_unknown_are_left_alone(tmp_path):
    source = folder(tmp_path, "llama")
    _, shop = quantize(made("llama"), QuantizeOptions(bits=5, group=32), batches("llama"))
    known = shop.calibration
    name = "model.layers.0.mlp.up_proj"
    known = replace(known, outputs={key: G for key, G in known.outputs.items() if key != name})
    plan, _ = quantize_stream(source, None, QuantizeOptions(bits=5, group=32), calibration=known)
    assert plan[name].form == "dense" and "gradient" in plan[name].reason


def test_joint_plans_and_plans_by_loss(tmp_path):
    save_file(made("perceptron").state_dict(), tmp_path / "m.safetensors")
    source, model = ns.open(tmp_path / "m.safetensors"), made("perceptron")
    _, shop = quantize(model, QuantizeOptions(bits=6), [torch.randn(200, 48)])
    options = QuantizeOptions(bits=6, forms=("factors", "pivoted"), ranks=(0,), levels=(8,))
    plan, saved = quantize_stream(source, tmp_path / "out", options, calibration=shop.calibration)
    assert {decision.form for decision in plan} & {"factors", "pivoted"}
    x = torch.randn(5, 48)
    back = ns.load(tmp_path / "out", made("perceptron", seed=4))
    assert back(x).isfinite().all() and saved.replacements == 3
    quantize_stream(source, tmp_path / "plain", options, "dequantized", plan=plan, calibration=shop.calibration)
    torch.testing.assert_close(ns.load(tmp_path / "plain", made("perceptron"))(x), back(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputRefused, match="holds codes only"):
        quantize_stream(source, tmp_path / "no", options, "compressed-tensors", plan=plan)
    tight, _ = quantize_stream(source, None, QuantizeOptions(loss=1e-6), calibration=shop.calibration)
    loose, _ = quantize_stream(source, None, QuantizeOptions(loss=1e-1), calibration=shop.calibration)
    assert tight.totals["selected_after"].bytes > loose.totals["selected_after"].bytes
    Plan.from_dict(json.loads(tight.to_json()))


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"bits": 4}, "gguf", "needs a live model"),
        ({"bits": 4, "weigh": "measured"}, "netspectra", "runs the model"),
        ({"loss": 0.1}, "netspectra", "needs --moments"),
        ({"bits": 0.5}, "netspectra", "cannot be met"),
        ({"bits": 4, "forms": ("neurons",)}, "netspectra", "one by one"),
    ],
)
def test_what_a_stream_refuses(options, kind, match, tmp_path):
    save_file(made("perceptron").state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(InputRefused, match=match):
        quantize_stream(ns.open(tmp_path / "m.safetensors"), tmp_path / "out", QuantizeOptions(**options), kind)
    assert not (tmp_path / "out").exists()


def test_weights_alone_are_labelled_weak(tmp_path):
    source = folder(tmp_path, "llama")
    plan, _ = quantize_stream(source, None, QuantizeOptions(bits=5, group=32, ranks=(0,), weigh="weights"))
    assert any(note.startswith("weak") for note in plan.notes)
    assert len({decision.form for decision in plan}) > 1


def broken(tmp_path, number):
    tensors = made("perceptron").state_dict()
    name = next(name for name in tensors if name.endswith(".weight"))
    tensors[name][0, 0] = number
    save_file(tensors, tmp_path / "m.safetensors")
    return ns.open(tmp_path / "m.safetensors"), name


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(number, tmp_path):
    source, name = broken(tmp_path, number)
    with pytest.raises(InputRefused, match="holds NaN or Inf") as refusal:
        quantize_stream(source, tmp_path / "out", QuantizeOptions(bits=5))
    assert name in str(refusal.value) and not (tmp_path / "out").exists()
    quantize_stream(source, tmp_path / "out", QuantizeOptions(bits=5, exclude=(name,)))


def test_an_empty_selection_is_refused_as_with_a_live_model(tmp_path):
    source, _ = broken(tmp_path, 1.0)
    with pytest.raises(InputRefused, match="no layer is selected"):
        quantize_stream(source, tmp_path / "out", QuantizeOptions(bits=5, include=("nothing*",)))


def test_a_folder_that_would_hold_nothing_packed_is_refused(tmp_path):
    source = folder(tmp_path, "gpt2")
    with pytest.raises(InputRefused, match="type Linear"):
        quantize_stream(source, tmp_path / "out", QuantizeOptions(bits=5, symmetric=True), "compressed-tensors")
    assert not (tmp_path / "out").exists()

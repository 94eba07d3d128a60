"""Saved models load elsewhere: stock where a config can say it, else with a manifest; never a silent wrong result."""

import json

import pytest
import torch
from benchmarks.compress.architectures import ARCHITECTURES, made
from safetensors.torch import load_file
from torch import nn

import netspectra as ns
from netspectra.checkpoint import MANIFEST
from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Member, Site
from netspectra.forms.place import place_
from netspectra.live.batches import call, main_output
from tests.live.test_coverage import answer, factored_

transformers = pytest.importorskip("transformers")

MLP = {
    "bert": ("intermediate.dense", "output.dense"),
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    "llama": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "qwen2": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "t5": ("DenseReluDense.wi", "DenseReluDense.wo"),
    "vit": ("mlp.fc1", "mlp.fc2"),
    "whisper": ("fc1", "fc2"),
}

COMPILED = ("bert", "gpt2", "llama", "qwen2", "t5", "vit", "multihead attention", "resnet", "mobilenet")


def narrowed_(model, name, width=96):
    """Every MLP of the same smaller width, as neuron shrinking makes it."""
    from netspectra.forms import FORMS

    form, count = FORMS["neurons"], 0
    for place, module in list(model.named_modules()):
        for tail in MLP[name]:
            if place.endswith(tail) and "attention." not in place and "attn." not in place:
                spec = {"inputs" if tail == MLP[name][-1] else "outputs": width}
                new = form.empty(module, spec)
                with torch.no_grad():
                    for parameter in new.parameters():
                        parameter.normal_(0, 0.1)
                place_(model, place, new, "neurons", spec)
                count += 1
    assert count >= 4
    return model


@pytest.mark.parametrize("name", MLP)
def test_one_smaller_width_is_a_stock_model(name, tmp_path):
    model, batch = narrowed_(made(name), name), ARCHITECTURES[name].batch(0, 2)
    before = model.config.to_dict()
    saved = ns.save(model, tmp_path / "out")
    assert saved.stock and saved.replacements == 0 and model.config.to_dict() == before
    back = type(model).from_pretrained(tmp_path / "out").eval()
    assert torch.equal(answer(back, batch), answer(model, batch))
    assert torch.equal(answer(ns.load(tmp_path / "out"), batch), answer(model, batch))


def test_unequal_widths_need_the_manifest(tmp_path):
    model, batch = narrowed_(made("bert"), "bert"), ARCHITECTURES["bert"].batch(0, 2)
    mlp = model.encoder.layer[0]
    place_(model, "encoder.layer.0.intermediate.dense", nn.Linear(64, 80), "neurons", {"outputs": 80})
    place_(model, "encoder.layer.0.output.dense", nn.Linear(80, 64), "neurons", {"inputs": 80})
    assert mlp.output.dense.in_features == 80
    saved = ns.save(model, tmp_path / "out")
    assert not saved.stock and saved.replacements == 4
    assert torch.equal(answer(ns.load(tmp_path / "out"), batch), answer(model, batch))


def test_factors_load_with_three_lines_of_torch(tmp_path):
    model = factored_(made("perceptron"))
    ns.save(model, tmp_path / "out")
    plain = made("perceptron", seed=5)
    for one in json.loads((tmp_path / "out" / MANIFEST).read_text())["replacements"]:
        old, rank = plain.get_submodule(one["module"]), one["spec"]["rank"]
        plain.set_submodule(one["module"], nn.Sequential(nn.Linear(old.in_features, rank, bias=False),
                                                         nn.Linear(rank, old.out_features)))  # fmt: skip
    plain.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    x = torch.randn(4, 48)
    assert torch.equal(plain(x), model(x))


def test_who_does_not_know_of_factors_fails_loudly(tmp_path):
    ns.save(factored_(made("bert")), tmp_path / "out")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept(dtype, tmp_path):
    ns.save(made("llama").to(dtype), tmp_path / "in")
    model = factored_(ns.load(tmp_path / "in"))  # .to() alone would have rounded the rotary frequencies, too
    ns.save(model, tmp_path / "out")
    found = load_file(tmp_path / "out" / "netspectra.safetensors")
    assert {t.dtype for t in found.values()} == {dtype}
    back = ns.load(tmp_path / "out")
    assert {p.dtype for p in back.parameters()} == {dtype}
    batch = ARCHITECTURES["llama"].batch(0, 2)
    assert torch.equal(answer(back, batch), answer(model, batch))


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self, tie=True):
            super().__init__()
            self.embedding, self.mix, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50, bias=False)
            if tie:
                self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.mix(self.embedding(x)))

    model, x = Tied(), torch.arange(6)[None]
    ns.save(model, tmp_path / "out")
    assert sorted(load_file(tmp_path / "out" / "model.safetensors")) == ["embedding.weight", "mix.bias", "mix.weight"]
    for fresh in (Tied(), Tied(tie=False)):
        back = ns.load(tmp_path / "out", fresh)
        assert back.head.weight is back.embedding.weight and torch.equal(back(x), model(x))


def test_shards_and_their_sum(tmp_path):
    for name, model in (("stock", made("gpt2")), ("factors", factored_(made("gpt2")))):
        saved = ns.save(model, tmp_path / name, largest=60_000)
        files = list((tmp_path / name).glob("*.safetensors"))
        assert len(files) > 2 and saved.bytes == sum(file.stat().st_size for file in files)
        batch = ARCHITECTURES["gpt2"].batch(0, 2)
        assert torch.equal(answer(ns.load(tmp_path / name), batch), answer(model, batch))


def test_bytes_are_what_the_parameters_take(tmp_path):
    model = factored_(made("perceptron"))
    saved = ns.save(model, tmp_path / "out")
    header = 8 + int.from_bytes((tmp_path / "out" / "model.safetensors").read_bytes()[:8], "little")
    assert saved.bytes == header + sum(4 * p.numel() for p in model.parameters())


def test_what_was_not_touched_is_copied_byte_for_byte(tmp_path):
    """Also where transformers would have cast it: a float32 norm among bfloat16 weights."""
    from safetensors.torch import save_file

    made("bert").bfloat16().save_pretrained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    name = "encoder.layer.0.output.LayerNorm.weight"
    tensors[name] = tensors[name].float() + 1e-6
    save_file(tensors, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    model = factored_(ns.load(tmp_path / "in"))
    ns.save(model, tmp_path / "out", like=tmp_path / "in")
    found = load_file(tmp_path / "out" / "netspectra.safetensors")
    kept = [key for key in found if key in tensors]
    assert len(kept) == 10 and found[name].dtype == torch.float32
    assert all(found[key].dtype == tensors[key].dtype and torch.equal(found[key], tensors[key]) for key in kept)


def test_what_describes_the_model_goes_along_and_code_does_not(tmp_path):
    home = tmp_path / "in"
    made("bert").save_pretrained(home)
    (home / "1_Pooling").mkdir()
    files = {"tokenizer.json": "{}", "vocab.txt": "a", "LICENSE": "free", "1_Pooling/config.json": "{}"}
    strangers = {"modeling_x.py": "1", "pytorch_model.bin": "x", "model.safetensors.index.json": "{}", "a.png": "x"}
    for name, text in (files | strangers).items():
        (home / name).write_text(text)
    (tmp_path / "secret.json").write_text("{}")
    (home / "secret.json").symlink_to(tmp_path / "secret.json")
    (home / "model.safetensors.index.json").unlink()
    ns.save(factored_(made("bert")), tmp_path / "out", like=home)
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {*files, "config.json", MANIFEST, "netspectra.safetensors"}


def test_a_gguf_file_comes_out_as_a_stock_folder(tmp_path):
    pytest.importorskip("gguf")
    from tests.live.test_build import to_gguf

    model = made("llama")
    path = to_gguf(model, tmp_path / "m.gguf", "llama")
    saved = ns.save(ns.load(path), tmp_path / "out", like=path)
    assert saved.stock and "without a tokenizer" in saved.notes[0]  # that file has no vocabulary
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    batch = ARCHITECTURES["llama"].batch(0, 2)
    assert torch.allclose(answer(back, batch), answer(model, batch), atol=1e-6)


def test_saving_again_over_what_we_wrote_and_from_it(tmp_path):
    model = factored_(made("bert"))
    for _ in range(2):
        ns.save(model, tmp_path / "out")
    again = ns.load(tmp_path / "out")
    ns.save(again, tmp_path / "out", like=tmp_path / "out")
    batch = ARCHITECTURES["bert"].batch(0, 2)
    assert torch.equal(answer(ns.load(tmp_path / "out"), batch), answer(model, batch))


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ("[]", r"netspectra\.json: "),  # said when the folder is opened
        ("{", r"netspectra\.json: "),
        ('{"format": 2}', "update netspectra"),
        ('{"format": 1, "replacements": [{}]}', "not {module, form, spec}"),
        ('{"format": 1, "replacements": [{"module": "0", "form": "magic", "spec": {}}]}', "unknown form 'magic'"),
        ('{"format": 1, "replacements": [{"module": "nope", "form": "factors", "spec": {"rank": 3}}]}', "nope"),
        ('{"format": 1, "replacements": [{"module": "1", "form": "factors", "spec": {"rank": 3}}]}', "cannot become"),
        ('{"format": 1, "replacements": [{"module": "0", "form": "factors", "spec": {"rank": -3}}]}', "cannot become"),
        ('{"format": 1, "replacements": [{"module": "0", "form": "factors", "spec": {}}]}', "cannot become"),
        ('{"format": 1, "tied": {"0.nope.weight": "0.weight"}}', "tied"),
        ('{"format": 1, "replacements": [{"module": "0", "form": "factors", "spec": {"rank": 2}}]}', "does not fit"),
    ],
)
def test_damaged_manifests(manifest, match, tmp_path):
    ns.save(made("perceptron"), tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_text(manifest)
    with pytest.raises(InputRefused, match=match):
        ns.load(tmp_path / "out", made("perceptron"))


def test_an_absurd_rank_takes_no_memory(tmp_path):
    ns.save(factored_(made("bert")), tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    found = json.loads(path.read_text())
    found["replacements"][0]["spec"]["rank"] = 10**12
    path.write_text(json.dumps(found))
    with pytest.raises(InputRefused, match="does not fit"):
        ns.load(tmp_path / "out")


def test_state_that_safetensors_cannot_hold(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(InputRefused, match="_extra_state"):
        ns.save(Odd(2, 2), tmp_path / "out")
    with pytest.raises(InputRefused, match="meta device"):
        ns.save(nn.Linear(2, 2, device="meta"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["perceptron", *(pytest.param(n, marks=pytest.mark.slow) for n in COMPILED)])
def test_factors_compile_without_a_break(name):
    model, batch = factored_(made(name)), ARCHITECTURES[name].batch(0, 2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(main_output(call(compiled, batch)), main_output(call(model, batch)))


def test_a_shared_factor_is_still_computed_once(tmp_path):
    model, form = made("bert"), FORMS["joint"]
    names = [f"encoder.layer.0.attention.self.{role}" for role in ("query", "key", "value")]
    members = {n: Member(n, m, m.weight.detach().double()) for n in names for m in [model.get_submodule(n)]}
    site = Site("attention", "qkv", members, method="plain")
    specs = form.specs(site, 8)
    for name, new in form.fit(site, 8).items():
        place_(model, name, new, "joint", specs[name])
    ns.save(model, tmp_path / "out")
    back = ns.load(tmp_path / "out")
    first, *others = (back.get_submodule(name)[0] for name in names)
    assert all(other is first for other in others) and first.users == 3

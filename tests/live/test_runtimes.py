"""What runtimes load, read back by the real library: torchao, compressed-tensors, gguf, PEFT; bit for bit."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.composed import compose
from netspectra.errors import InputRefused
from netspectra.forms.coded import CodedModule, stock
from netspectra.live.runtimes import coded_modules, decoded
from netspectra.live.runtimes.adapter import write_adapter
from netspectra.verbs.quantize.emit import FORMATS, emit

transformers = pytest.importorskip("transformers")
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
needs_compressed = pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="no compressed-tensors")
IDS = torch.arange(20)[None] % 96


def llama(seed: int = 0, tie: bool = False, dtype: torch.dtype = torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tie,
        )  # fmt: skip
        return transformers.LlamaForCausalLM._from_config(config, dtype=dtype).eval()  # positions stay in float32


def texts(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, 96, (16, 12), generator=g)}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(32, 24),
        ).eval()  # fmt: skip


def images() -> list[torch.Tensor]:
    return [torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def quantized(model, data, **options):
    plan = ns.quantize(model, calibration=data, **options)
    plan.apply(model)
    return model, plan


def forced(model, data, choices: dict[str, tuple[str, int]]):
    """The model with forms and ranks by name, by way of an edited plan."""
    options = {"bits": 30.0, "ranks": (0, 8, 16), "group": 32, "levels": (8, 4, 3)}
    plan = ns.quantize(model, calibration=data, **options)
    edited = [replace(d, form=choices.get(d.site, ("dense", 0))[0], size=choices.get(d.site, ("dense", 0))[1])
              for d in plan]  # fmt: skip
    plan = ns.quantize(model, calibration=data, plan=replace(plan, decisions=tuple(edited)), **options)
    plan.apply(model)
    return model


def small(**options):
    given = {"bits": 5.0, "exclude": ("lm_head*", "model.embed*"), "ranks": (0,), **options}
    return quantized(llama(), [texts(i) for i in range(4)], **given)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_decoded_is_what_the_codes_compute():
    model, _ = small(ranks=(0, 8))
    plain = decoded(model)
    assert not any(isinstance(module, CodedModule) for module in plain.modules())
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-6)
    assert any(isinstance(module, CodedModule) for module in model.modules())
    name, module = next(iter(coded_modules(model).items()))
    assert torch.equal(plain.get_submodule(name).weight, module.weight.detach())
    assert torch.equal(stock(module, corrected=False).weight, module.rounded(torch.float32))
    with pytest.raises(InputRefused, match="no layer of this model is quantized"):
        decoded(llama())


def test_the_dequantized_twin_loads_with_transformers(tmp_path):
    model, plan = small(ranks=(0, 8))
    saved = emit(model, tmp_path / "m", "dequantized", plan=plan)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert saved.stock and torch.equal(logits(again), logits(decoded(model)))
    found = json.loads((tmp_path / "m" / "recipe.json").read_text())
    assert set(found["layers"]) == set(coded_modules(model))
    assert found["measured"]["loss"] >= 0 and found["predicted_loss"] > 0
    emit(model, tmp_path / "m", "dequantized", plan=plan)  # ours, so it may be replaced


def test_our_own_folder_loads_again(tmp_path):
    model, plan = small(ranks=(0, 8))
    emit(model, tmp_path / "m", plan=plan)
    assert torch.equal(logits(ns.load(tmp_path / "m")), logits(model))
    assert (tmp_path / "m" / "recipe.json").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_our_own_folder_loads_in_the_dtype_it_had(tmp_path, dtype):
    """Embeddings included: what they give sets the dtype of all that follows."""
    model, plan = quantized(llama(dtype=dtype), [texts(i) for i in range(2)], bits=4.5, ranks=(0, 8))
    assert "model.embed_tokens" in coded_modules(model)
    emit(model, tmp_path / "m", plan=plan)
    again = ns.load(tmp_path / "m")
    assert logits(again).dtype == dtype and torch.equal(logits(again), logits(model))
    given = ns.load(tmp_path / "m", llama(seed=1))  # whose numbers do not matter, nor their dtype
    assert torch.equal(logits(given), logits(model))


def test_unknown_formats_are_refused(tmp_path):
    model, plan = small()
    with pytest.raises(InputRefused, match=", ".join(FORMATS)):
        emit(model, tmp_path / "m", "marlin", plan=plan)
    if find_spec("torchao") is None:
        with pytest.raises(InputRefused, match="pip install torchao"):
            emit(model, tmp_path / "m", "torchao", plan=plan)
        assert not (tmp_path / "m").exists()


# ---- torchao -----------------------------------------------------------------------------------------------------


@needs_torchao
@pytest.mark.parametrize("symmetric", [True, False])
def test_torchao_reads_its_tensors_through_transformers(tmp_path, symmetric):
    model, plan = small(symmetric=symmetric, levels=(8, 5, 4, 3, 2), group=32)
    assert len({module.bits for module in coded_modules(model).values()}) > 1
    emit(model, tmp_path / "m", "torchao", plan=plan)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    for name, module in coded_modules(model).items():
        tensor = again.get_submodule(name).weight
        assert type(tensor).__name__ == "IntxUnpackedToInt8Tensor" and str(tensor.target_dtype).endswith(
            str(module.bits)
        )
        assert torch.equal(tensor.dequantize(), module.rounded(torch.float32))
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)


@needs_torchao
def test_torchao_reads_networks_that_are_not_transformers(tmp_path):
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    model, plan = quantized(network(), images(), bits=5.0, ranks=(0,), group=0)
    emit(model, tmp_path / "m", "torchao", plan=plan)
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state, left = unflatten_tensor_state_dict(tensors, file.metadata())
    assert not left
    again = network()
    again.load_state_dict(state, assign=True)
    for name, module in coded_modules(model).items():
        assert torch.equal(
            again.get_submodule(name).weight.dequantize(), module.rounded(torch.float32).reshape(module.shape)
        )
    with torch.no_grad():
        torch.testing.assert_close(again(images()[0]), model(images()[0]), rtol=1e-4, atol=1e-5)


class Rooted(nn.Module):
    """A parameter of its own, and a table tied to the last layer."""

    def __init__(self):
        super().__init__()
        self.shift, self.table, self.body = nn.Parameter(torch.ones(32)), nn.Embedding(40, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.table(ids) + self.shift)))


@needs_torchao
def test_torchao_reads_tensors_of_the_models_own_and_tied_ones(tmp_path):
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    ids = torch.randint(0, 40, (16, 8), generator=torch.Generator().manual_seed(0))
    model, plan = quantized(Rooted().eval(), [ids], bits=5.0, ranks=(0,), include=("body*",))
    emit(model, tmp_path / "m", "torchao", plan=plan)
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state, left = unflatten_tensor_state_dict(tensors, file.metadata())
    assert set(left) == {"shift"}
    again = Rooted()
    again.load_state_dict(state | left, assign=True)
    with torch.no_grad():
        torch.testing.assert_close(again(ids), model(ids), rtol=1e-4, atol=1e-5)


@needs_torchao
def test_torchao_reads_a_transformers_model_with_a_tensor_of_its_own(tmp_path):
    """BART's final_logits_bias."""
    config = transformers.BartConfig(
        vocab_size=40, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    ids = torch.randint(3, 40, (16, 8), generator=torch.Generator().manual_seed(0))
    kind, batch = transformers.BartForConditionalGeneration, {"input_ids": ids, "decoder_input_ids": ids}
    model, plan = quantized(kind(config).eval(), [batch], bits=5.0, ranks=(0,), include=("*fc1*",))
    emit(model, tmp_path / "m", "torchao", plan=plan)
    again = kind.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


@needs_torchao
def test_torchao_multiplies_in_what_peft_cannot_add(tmp_path):
    """PEFT takes a table of torchao's for a Linear; and it has no correction for convolutions."""
    peft = pytest.importorskip("peft")
    names = {"model.embed_tokens": ("int3", 8), "model.layers.0.mlp.up_proj": ("int3", 8)}
    model = forced(llama(), [texts(i) for i in range(2)], names)
    saved = emit(model, tmp_path / "m", "torchao")
    assert any("model.embed_tokens: PEFT cannot add" in note for note in saved.notes)
    assert any("take 8 on disk" in note for note in saved.notes)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    joined = peft.PeftModel.from_pretrained(base, tmp_path / "m" / "correction").eval()
    torch.testing.assert_close(logits(joined), logits(model), rtol=1e-4, atol=1e-5)
    forms = forced(network(), images(), {"2": ("int3", 8), "6": ("int4", 0)})
    emit(forms, tmp_path / "n", "torchao")
    assert not (tmp_path / "n" / "correction").exists()
    with pytest.raises(InputRefused, match="no scales in float64"):
        emit(quantized(network().double(), [one.double() for one in images()], bits=5.0)[0], tmp_path / "o", "torchao")
    with pytest.raises(InputRefused, match="for no layer"):
        emit(forced(network(), images(), {"2": ("int3", 8)}), tmp_path / "o", "torchao")


@needs_torchao
def test_torchaos_config_by_name_is_read_by_torchao(tmp_path):
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    model, plan = small(levels=(8, 4), group=32)
    emit(model, tmp_path / "m", "torchao", plan=plan)
    config = config_from_dict(json.loads((tmp_path / "m" / "torchao_config.json").read_text()))
    plain = llama()
    quantize_(plain, config, filter_fn=None)
    for name, module in coded_modules(model).items():
        assert str(plain.get_submodule(name).weight.target_dtype).endswith(str(module.bits))


# ---- compressed-tensors ------------------------------------------------------------------------------------------


@needs_compressed
def test_compressed_tensors_through_transformers(tmp_path):
    model, plan = small(symmetric=True, levels=(8, 4, 3), group=32)
    saved = emit(model, tmp_path / "m", "compressed-tensors", plan=plan)
    groups = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert {g["weights"]["num_bits"] for g in groups.values()} == {m.bits for m in coded_modules(model).values()}
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    found = logits(again)  # the first call decompresses
    for name, module in coded_modules(model).items():
        assert torch.equal(again.get_submodule(name).weight, module.rounded(torch.float32))
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-6)
    assert saved.stock


@needs_compressed
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_compressed_tensors_decodes_zero_points(tmp_path, bits):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from safetensors.torch import load_file

    model, plan = small(levels=(bits,), bits=12, group=32)
    saved = emit(model, tmp_path / "m", "compressed-tensors", plan=plan)
    assert any("zero points" in note for note in saved.notes)
    assert any("4 and 8 only" in note for note in saved.notes) == (bits not in (4, 8))
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    reader = BaseCompressor.get_value_from_registry(config["format"])
    for group in config["config_groups"].values():
        scheme = QuantizationScheme.model_validate(group)
        for name in group["targets"]:
            own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            found = reader.decompress(own, scheme)["weight"]
            assert torch.equal(found, model.get_submodule(name).rounded(torch.float32))


PACKED = ["netspectra", "compressed-tensors", pytest.param("torchao", marks=needs_torchao)]


def read_back(model, folder, kind, plan):
    """Weights as ``analyze`` sees them, by name."""
    emit(model, folder, kind, plan=plan)
    source = ns.open(folder)
    return {ref.name: ref for ref in compose(source.tensors, source.config)}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("symmetric", [True, False])
def test_our_own_reader_decodes_what_was_packed(tmp_path, kind, symmetric):
    model, plan = small(symmetric=symmetric, levels=(8, 4, 3, 2), group=32)
    refs = read_back(model, tmp_path / "m", kind, plan)
    assert len({module.bits for module in coded_modules(model).values()}) > 1
    for name, module in coded_modules(model).items():
        assert torch.equal(refs[f"{name}.weight"].load(), module.rounded(torch.float32))
        assert refs[f"{name}.weight"].stored.startswith(f"int{module.bits} ")
    assert not [weight for weight in ns.open(tmp_path / "m") if "scale" in weight.name]


@pytest.mark.parametrize("kind", ["netspectra", pytest.param("torchao", marks=needs_torchao)])
def test_our_own_reader_knows_kernels_and_corrections(tmp_path, kind):
    model = forced(network(), images(), {"0": ("int4", 0), "2": ("int3", 8 if kind == "netspectra" else 0)})
    refs = read_back(model, tmp_path / "m", kind, None)
    for name in ("0", "2"):
        found, module = refs[f"{name}.weight"].load(), model.get_submodule(name)
        assert found.shape == module.weight.shape
        torch.testing.assert_close(found, module.weight.detach(), rtol=1e-6, atol=1e-7)


def test_our_own_reader_turns_conv1d_back(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4, n_positions=64)
        model = transformers.GPT2LMHeadModel(config).eval()
    name = "transformer.h.0.mlp.c_fc"
    model = forced(model, [texts(0)], {name: ("int4", 8)})
    found = read_back(model, tmp_path / "m", "netspectra", None)[f"{name}.weight"].load()
    assert found.shape == (64, 256)
    torch.testing.assert_close(found, model.get_submodule(name).weight.detach(), rtol=1e-6, atol=1e-7)


# ---- gguf --------------------------------------------------------------------------------------------------------


def test_gguf_is_read_by_its_library_and_by_ours(tmp_path):
    gguf = pytest.importorskip("gguf")
    model, plan = small(symmetric=True, levels=(8, 5, 4), group=32, bits=6.0)
    used = {module.bits for module in coded_modules(model).values()}
    emit(model, tmp_path / "m", "gguf", plan=plan)
    reader = gguf.GGUFReader(tmp_path / "m" / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    kinds = {tensor.tensor_type.name for tensor in tensors.values()}
    assert kinds == {"F32", "F16", *({8: "Q8_0", 5: "Q5_0", 4: "Q4_0"}[bits] for bits in used)}
    down = tensors["blk.1.ffn_down.weight"]
    numbers = torch.from_numpy(gguf.quants.dequantize(down.data, down.tensor_type))
    assert torch.equal(numbers, model.model.layers[1].mlp.down_proj.rounded(torch.float32))
    again = ns.load(tmp_path / "m")  # the folder holds one GGUF file
    for name, module in coded_modules(model).items():
        assert torch.equal(again.get_submodule(name).weight.float(), module.rounded(torch.float32))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", gguf_file="model.gguf")
    for name, module in coded_modules(model).items():
        assert torch.equal(theirs.get_submodule(name).weight, module.rounded(torch.float32))
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-2, atol=1e-3)  # the tables are F16 there
    lines = (tmp_path / "m" / "llama-quantize.txt").read_text().splitlines()
    assert len(lines) == len(coded_modules(model))
    assert all(line.startswith("--tensor-type blk\\.") for line in lines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gguf_holds_a_table_of_tokens_of_its_own(tmp_path, dtype):
    """Untied, it is quantized as any matrix; what is not quantized keeps its numbers if they are bfloat16."""
    gguf = pytest.importorskip("gguf")
    options = {"symmetric": True, "levels": (8, 5, 4), "group": 32, "ranks": (0,), "exclude": ("*o_proj*",)}
    model, plan = quantized(llama(dtype=dtype), [texts(0)], bits=6.0, scales="float16", **options)
    emit(model, tmp_path / "m", "gguf", plan=plan)
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "m" / "model.gguf").tensors}
    assert kinds["token_embd.weight"][0] == kinds["output.weight"][0] == "Q"
    assert kinds["blk.0.attn_output.weight"] in ("F16", "BF16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", gguf_file="model.gguf")
    table = model.get_submodule("model.embed_tokens")
    assert torch.equal(theirs.get_input_embeddings().weight, table.rounded(torch.float32))
    again = ns.load(tmp_path / "m")
    assert torch.equal(again.get_input_embeddings().weight.float(), table.rounded(torch.float32))
    if dtype is torch.bfloat16:
        dense = [one.model.layers[1].self_attn.o_proj.weight for one in (model, theirs, again)]
        assert torch.equal(dense[0].float(), dense[1]) and torch.equal(dense[0].float(), dense[2].float())
        with pytest.raises(InputRefused, match="scales are no float16"):
            emit(quantized(llama(dtype=dtype), [texts(0)], bits=6.0, **options)[0], tmp_path / "n", "gguf")
        with pytest.raises(InputRefused, match=r"in which torchao has them|pip install torchao"):
            emit(model, tmp_path / "n", "torchao")
    torch.testing.assert_close(logits(theirs), logits(model).float(), rtol=0.05, atol=0.02)


def test_gguf_decodes_a_table_of_positions(tmp_path):
    pytest.importorskip("gguf")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4, n_positions=64)
        model = transformers.GPT2LMHeadModel(config).eval()
    options = {"symmetric": True, "levels": (8, 5, 4), "group": 32, "ranks": (0,)}
    model, plan = quantized(model, [texts(0)], bits=6.0, **options)
    saved = emit(model, tmp_path / "m", "gguf", plan=plan)
    assert "transformer.wpe: a table of positions; decoded, float32" in saved.notes
    again = ns.load(tmp_path / "m")
    for name, module in coded_modules(model).items():
        assert torch.equal(again.get_submodule(name).weight.float(), module.weight.detach())


def test_gguf_refuses_what_it_cannot_hold(tmp_path):
    pytest.importorskip("gguf")
    model, plan = small(levels=(4, 3), group=64)
    with pytest.raises(InputRefused, match="group=32, symmetric=True"):
        emit(model, tmp_path / "m", "gguf", plan=plan)
    with pytest.raises(InputRefused, match="no GGUF architecture"):
        emit(quantized(network(), images(), bits=5.0)[0], tmp_path / "m", "gguf")


# ---- the correction ----------------------------------------------------------------------------------------------


def test_the_correction_is_a_peft_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    names = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]
    sizes = dict(zip(names, (8, 16, 16, 0), strict=True))
    model = forced(llama(), [texts(i) for i in range(4)], {name: ("int3", rank) for name, rank in sizes.items()})
    ranks = {name: module.rank for name, module in coded_modules(model).items() if module.rank}
    assert len(set(ranks.values())) > 1
    assert write_adapter(model, tmp_path / "correction") == sorted(ranks)
    base = decoded(model, corrected=False)
    joined = peft.PeftModel.from_pretrained(base, tmp_path / "correction").eval()
    torch.testing.assert_close(logits(joined), logits(model), rtol=1e-4, atol=1e-5)
    merged = joined.merge_and_unload()
    for name in ranks:
        torch.testing.assert_close(merged.get_submodule(name).weight, model.get_submodule(name).weight)


def test_the_correction_of_an_embedding_and_of_conv1d(tmp_path):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4, n_positions=64,
                                         tie_word_embeddings=False)  # fmt: skip
        model = transformers.GPT2LMHeadModel(config).eval()
    chosen = {"transformer.wte": ("int3", 16), "transformer.h.0.mlp.c_fc": ("int4", 8)}
    model = forced(model, [texts(i) for i in range(4)], chosen)
    assert model.transformer.wte.rank == 16 and model.transformer.h[0].mlp.c_fc.rank == 8
    write_adapter(model, tmp_path / "correction")
    joined = peft.PeftModel.from_pretrained(decoded(model, corrected=False), tmp_path / "correction").eval()
    torch.testing.assert_close(logits(joined), logits(model), rtol=1e-4, atol=1e-5)


def test_corrections_of_convolutions_are_refused_not_dropped(tmp_path):
    model = forced(network(), images(), {"2": ("int3", 8)})
    assert model[2].rank == 8
    with pytest.raises(InputRefused, match="convolution"):
        write_adapter(copy.deepcopy(model), tmp_path / "correction")


def test_the_rooms_load_none_of_the_libraries():
    code = (
        "import sys, netspectra.verbs.quantize.emit, netspectra.live.runtimes.torchao, "
        "netspectra.live.runtimes.compressed, netspectra.live.runtimes.gguf\n"
        "print([m for m in ('torchao', 'compressed_tensors', 'gguf', 'transformers', 'peft') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

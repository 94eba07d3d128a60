"""Text and tensors become batches."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.live.samples import is_tensors, read_samples, tensor_batches, text_batches, tokenizer

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A word-level tokenizer in a folder, beside weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tok")
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", "one", "two", "three"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    save_file({"weight": torch.ones(2, 2)}, folder / "model.safetensors")
    return tokenizer(ns.open(folder))


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ("one two\nthree\n", ["one two", "three"]),
        ("one\ntwo\n\nthree\n\n\n\nfour", ["one\ntwo", "three", "four"]),
        ("one\r\n\r\ntwo", ["one", "two"]),
        ("one\n   \n  two", ["one", "two"]),
        ("\ufeffone", ["one"]),
        ("\n\none line\n\n", ["one line"]),
    ],
)
def test_samples_are_separated_by_blank_lines_or_else_lines(text, samples, tmp_path):
    (tmp_path / "t.txt").write_text(text, encoding="utf-8", newline="")
    assert read_samples(tmp_path / "t.txt") == samples


@pytest.mark.parametrize(("data", "match"), [(b"", "no text"), (b" \n\n", "no text"), (b"\xff\xfe\x00", "UTF-8")])
def test_no_text(data, match, tmp_path):
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(InputRefused, match=match):
        read_samples(tmp_path / "t.txt")


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(InputRefused, match="no such text file"):
            read_samples(path)


def test_text_is_padded_masked_and_cut(tokens):
    batches = text_batches(["one two three", "two", "three strangers"], tokens, size=2, longest=2)
    assert [batch["input_ids"].tolist() for batch in batches] == [[[2, 3], [3, 0]], [[4, 1]]]
    assert batches[0]["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_the_models_length_and_decoder_count(tokens):
    from benchmarks.compress.architectures import made

    from netspectra.live.batches import call

    batch = text_batches(["one two", "three"], tokens, made("t5"))[0]
    assert batch["decoder_input_ids"].tolist() == [[0, 2], [0, 4]]
    call(made("t5"), batch)
    assert text_batches(["one " * 500], tokens, made("bert"))[0]["input_ids"].shape == (1, 64)


def test_no_tokenizer(tmp_path):
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputRefused, match="give batches of tensors"):
        tokenizer(ns.open(tmp_path))
    with pytest.raises(InputRefused, match="live model"):
        tokenizer(ns.open(torch.nn.Linear(2, 2)))


def test_tensors_go_by_name_by_place_or_alone(tmp_path):
    x, y = np.arange(10, dtype=np.float32).reshape(5, 2), np.arange(5)
    np.savez(tmp_path / "named.npz", x=x, ids=y)
    np.savez(tmp_path / "placed.npz", x, y)
    np.savez(tmp_path / "alone.npz", x=x)
    save_file({"x": torch.from_numpy(x)}, tmp_path / "alone.safetensors")
    named = tensor_batches(ns.open(tmp_path / "named.npz"), size=3)
    assert [len(batch["x"]) for batch in named] == [3, 2] and named[1]["ids"].tolist() == [3, 4]
    placed = tensor_batches(ns.open(tmp_path / "placed.npz"), size=5)
    assert placed[0][0].tolist() == x.tolist() and placed[0][1].tolist() == y.tolist()
    for name in ("alone.npz", "alone.safetensors"):
        assert is_tensors(tmp_path / name)
        assert torch.equal(torch.cat(tensor_batches(ns.open(tmp_path / name), size=2)), torch.from_numpy(x))


def test_rows_must_agree(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.ones((4, 2)))
    with pytest.raises(InputRefused, match="x: 3, y: 4"):
        tensor_batches(ns.open(tmp_path / "a.npz"))


def test_the_vocabulary_of_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    vocabulary = [*bytes_to_unicode().values(), "he", "ll", "hell", "hello", "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * (len(vocabulary) - 1) + [3])
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    writer.add_eos_token_id(len(vocabulary) - 1)
    writer.add_tensor("token_embd.weight", np.zeros((len(vocabulary), 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = tokenizer(ns.open(path))
    ids = found("hello hell<|end|>").input_ids
    assert found.decode(ids) == "hello hell<|end|>" and found.pad_token == "<|end|>"
    assert [vocabulary[i] for i in ids] == ["hello", "Ġ", "hell", "<|end|>"]

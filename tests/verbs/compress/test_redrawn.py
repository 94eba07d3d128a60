"""Samples with tokens drawn anew: found where a model reads tokens, the same in every shard, mixed as asked."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import netspectra as ns
from netspectra.live.tokens import Tokens, all_tokens_of, tokens_of
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.objective import as_objective
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.redrawn import SHARES, SPREAD, redrawn
from netspectra.verbs.compress.streamed import compress_stream
from netspectra.verbs.compress.workshop import moments, prepared, taken

WORDS, LENGTH = 50, 12


class Reader(nn.Module):
    """More places than words: the largest embedding is not the one that reads tokens."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(WORDS, 8), nn.Embedding(90, 8), nn.Embedding(2, 8)
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, WORDS)

    def forward(self, ids, kinds=None):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = x if kinds is None else x + self.kinds(kinds)
        return self.head(torch.relu(self.body(x)))


class Named(Reader):
    def forward(self, input_ids, token_type_ids):
        return super().forward(input_ids, token_type_ids)


def reader(kind=Reader):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def made():
    return reader()


def ids(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, WORDS // 2, (rows, LENGTH), generator=generator)


def kinds(rows):
    return torch.zeros(rows, LENGTH, dtype=torch.int64)


@pytest.mark.parametrize(
    ("kind", "batch", "place"),
    [
        (Reader, ids(3), None),
        (Reader, [ids(3), kinds(3)], 0),
        (Reader, {"ids": ids(3), "kinds": kinds(3)}, "ids"),
        (Named, {"token_type_ids": kinds(3), "input_ids": ids(3)}, "input_ids"),
    ],
)
def test_tokens_are_found_where_an_embedding_reads_them(kind, batch, place):
    assert tokens_of(reader(kind), batch) == Tokens(place, WORDS)


class Places(nn.Embedding):
    """As several models have it: handed the tokens, for their number."""

    def forward(self, ids):
        return super().forward(torch.arange(ids.shape[1]).expand_as(ids))


class Handed(Reader):
    def __init__(self):
        super().__init__()
        self.places = Places(LENGTH, 8)

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.words(input=ids) + self.places(ids))))


class Translator(nn.Module):
    """Reads two texts with one table."""

    class config:
        @staticmethod
        def to_dict():
            return {"pad_token_id": 0, "eos_token_id": [2, 3], "vision": {"image_token_index": 4}, "n_tokens": 5}

    def __init__(self):
        super().__init__()
        self.shared, self.kinds = nn.Embedding(WORDS, 8), nn.Embedding(2, 8)
        self.head = nn.Linear(8, WORDS)

    def forward(self, input_ids, decoder_input_ids, token_type_ids):
        x = (self.shared(input_ids) * 2 + self.kinds(token_type_ids)).mean(1, keepdim=True)
        return self.head(x + self.shared(decoder_input_ids))


def test_an_embedding_of_places_that_is_handed_the_tokens_reads_none():
    """Whisper's, for one: its table is far smaller than the tokens' numbers."""
    assert tokens_of(reader(Handed), ids(3)) == Tokens(None, WORDS)
    assert ns.compress(reader(Handed), keep=0.6, calibration=[ids(16, 1), ids(16, 2)]).options["spread"] == SPREAD


def test_what_a_decoder_reads_is_drawn_anew_and_special_tokens_are_not():
    model = reader(Translator)
    batch = {"input_ids": ids(40, 1), "decoder_input_ids": ids(40, 2), "token_type_ids": kinds(40)}
    batch["input_ids"][:, -1], batch["decoder_input_ids"][::3, 0] = 7, 4
    words = all_tokens_of(model, batch)
    assert [one.place for one in words] == ["input_ids", "decoder_input_ids"]
    assert words[0] == Tokens("input_ids", WORDS, (0, 2, 3, 4))
    (found,) = redrawn([batch], words)
    assert torch.equal(found["token_type_ids"], kinds(20))
    for name in ("input_ids", "decoder_input_ids"):
        old, new = batch[name][::2], found[name]
        assert 0.4 < float((old != new).double().mean()) < 0.8
        for special in (0, 2, 3, 4):
            assert torch.equal(old == special, new == special)
    assert torch.equal(found["input_ids"] == 7, batch["input_ids"][::2] == 7)  # it ends every sample, once


def test_a_model_that_counts_its_end_tokens_is_calibrated():
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=40, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, num_labels=3,
    )  # fmt: skip
    model = reader(lambda: transformers.BartForSequenceClassification(config).eval())
    texts = torch.randint(3, 40, (24, 10), generator=torch.Generator().manual_seed(0))
    texts[:, -1] = 2
    plan = ns.compress(model, keep=0.9, calibration=[{"input_ids": texts}], include=("*fc1*",))
    assert plan.options["spread"] == SPREAD


def test_no_tokens_in_numbers():
    assert tokens_of(nn.Linear(4, 2), torch.randn(3, 4)) is None
    assert tokens_of(nn.Linear(4, 2), {"input": torch.randn(3, 4)}) is None


def test_a_number_for_every_word_is_a_prediction():
    numbers = nn.Linear(4, 2)
    assert as_objective(None, reader(), ids(3)).name == "logits"
    assert as_objective(None, numbers, torch.randn(3, 4)).name == "output"
    assert as_objective(None, nn.Sequential(reader().words, nn.Linear(8, 9)), ids(3)).name == "output"


def test_every_other_sample_is_drawn_anew_a_third_or_all_of_it():
    batches = [ids(200, 1), ids(201, 2)]
    before = [batch.clone() for batch in batches]
    found = redrawn(batches, [Tokens(None, 1 << 20)], seed=3)
    assert [len(batch) for batch in found] == [100, 101]
    assert all(torch.equal(a, b) for a, b in zip(batches, before, strict=True))
    for number, (one, batch) in enumerate(zip(found, batches, strict=True)):
        changed = (one != batch[::2]).double()
        few, whole = changed[number % 2 :: 2].mean(), changed[1 - number % 2 :: 2].mean()
        assert few == pytest.approx(SHARES[0], abs=0.06) and whole > 0.999
    again = redrawn(batches, [Tokens(None, 1 << 20)], seed=3)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_one_sample_a_batch_changes_too():
    """What begins every sample stays; what stands in a batch of one sample alone is not in every sample."""
    batches = [torch.cat([torch.zeros(1, 1, dtype=torch.int64), ids(1, seed)], 1) for seed in range(6)]
    found = redrawn(batches, [Tokens(None, WORDS)])
    assert all(one[0, 0] == 0 for one in found)
    assert not any(torch.equal(a, b) for a, b in zip(found, batches, strict=True))


def test_a_share_of_the_moments_is_of_them():
    """Against moments summed by hand over the same samples."""
    model, batches = reader(), [ids(16, seed) for seed in range(4)]
    options = CompressOptions(spread=0.25, include=("body*",), held_out=0)
    data = prepared(model, options, batches)
    found = moments(model, options, data)

    def second(some):
        with torch.no_grad():
            x = torch.cat([model.words(b) + model.places(torch.arange(LENGTH)) for b in some]).flatten(0, 1).double()
        return x.T @ x / len(x)

    wanted = 0.75 * second(data.batches) + 0.25 * second(data.extra)
    torch.testing.assert_close(found.inputs["body"].second.double(), wanted, rtol=1e-5, atol=1e-7)
    assert found.spread == 0.25 and found.samples == 64
    main, _ = taken(model, options, data)
    assert torch.equal(found.outputs["body"].total, main.outputs["body"].total)


def test_models_of_tokens_by_default_and_others_not():
    plan = ns.compress(reader(), keep=0.6, calibration=[ids(16, 1), ids(16, 2)])
    assert plan.options["spread"] == SPREAD
    assert ns.compress(reader(), keep=0.6, calibration=[ids(16)], spread=0.0).options["spread"] == 0
    assert ns.compress(reader(), keep=0.6).options["spread"] == 0
    numbers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    assert ns.compress(numbers, keep=0.6, calibration=[torch.randn(64, 8)]).options["spread"] == 0
    with pytest.raises(ns.InputRefused, match="no embedding reads"):
        ns.compress(numbers, keep=0.6, calibration=[torch.randn(64, 8)], spread=0.4)
    for share in (-0.1, 1.0):
        with pytest.raises(ns.InputRefused, match="share from 0"):
            ns.compress(numbers, keep=0.6, spread=share)


@pytest.fixture
def files(tmp_path):
    save_file(reader().state_dict(), tmp_path / "model.safetensors")
    save_file({"ids": ids(48)}, tmp_path / "inputs.safetensors")
    return tmp_path / "model.safetensors", tmp_path / "inputs.safetensors"


@pytest.mark.parametrize("shards", [2, 3, 20])
def test_shards_draw_the_same_tokens(files, shards):
    whole = ns.calibrate(*files, model=made, batch_size=4, shards=1)
    parts = ns.calibrate(*files, model=made, batch_size=4, shards=shards)
    assert whole.spread == parts.spread == SPREAD and whole.samples == parts.samples
    for name, one in whole.inputs.items():
        torch.testing.assert_close(parts.inputs[name].total, one.total, rtol=1e-5, atol=1e-4)


def test_kept_moments_say_their_share(files, tmp_path):
    path = tmp_path / "moments.safetensors"
    ns.calibrate(*files, model=made, batch_size=8, spread=0.2).save(path)
    known = Calibration.load(path)
    assert known.spread == 0.2
    assert ns.compress(reader(), keep=0.6, calibration=path).options["spread"] == 0.2
    with pytest.raises(ns.InputRefused, match=r"taken with spread 0\.2, not 0\.4"):
        ns.compress(reader(), keep=0.6, calibration=path, spread=0.4)
    with pytest.raises(ns.InputRefused, match=r"taken with spread 0\.2, not 0"):
        compress_stream(ns.open(files[0]), None, CompressOptions(spread=0.0), calibration=known)
    assert compress_stream(ns.open(files[0]), None, CompressOptions(include=("body*",)), calibration=known)[0]


def test_moments_of_an_older_version_are_taken_anew(files, tmp_path):
    path = tmp_path / "moments.safetensors"
    ns.calibrate(*files, model=made, batch_size=8).save(path)
    with safe_open(path, "pt") as opened:
        tensors, strings = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    known = json.loads(strings["netspectra"])
    about = json.loads(known["moments"]["calibration"])
    del about["spread"]
    known["moments"]["calibration"] = json.dumps(about)
    save_file(tensors, path, {"netspectra": json.dumps(known)})
    with pytest.raises(ns.InputRefused, match="Calibrate again"):
        Calibration.load(path)

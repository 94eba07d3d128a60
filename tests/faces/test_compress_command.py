"""``netspectra compress`` on a BERT of no size: plan, edit, replay, write, load."""

import json

import pytest
import torch
from benchmarks.compress.architectures import made

import netspectra as ns
from tests.faces.test_cli import run

pytest.importorskip("transformers")
WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small BERT beside a word-level tokenizer, and a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    made("bert").save_pretrained(folder / "model")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder / "model")
    rng = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(0, 60, (8,), generator=rng).tolist()) for _ in range(64)]
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


def test_compress_writes_a_model_that_loads(model, tmp_path):
    out, page, plan = tmp_path / "small", tmp_path / "r.html", tmp_path / "plan.json"
    done = run("compress", model / "model", "--keep", "0.5", "--calibration", model / "text.txt", "-o", out,
               "--html", page, "--plan", plan, "--moments", tmp_path / "m.safetensors")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "for comparison, the same weights rounded to int8" in done.stdout and "measured:" in done.stdout
    assert "default-src 'none'" in page.read_text(encoding="utf-8")
    found = json.loads(plan.read_text())
    before, after = (found["totals"][f"selected_{when}"]["parameters"] for when in ("before", "after"))
    assert 0.4 * before < after <= 0.5 * before
    small = ns.load(out)
    assert sum(p.numel() for p in small.parameters()) <= found["totals"]["model_after"]["parameters"]
    predicted = found["totals"]["model_after"]["bytes"]
    assert sum(p.numel() * p.element_size() for p in small.parameters()) == pytest.approx(predicted, rel=0.02)

    again = tmp_path / "again"
    done = run("compress", model / "model", "--calibration", model / "text.txt", "-o", again, "--plan", plan,
               "--moments", tmp_path / "m.safetensors", "-q")  # fmt: skip
    assert done.returncode == 0 and done.stdout == "", done.stderr
    batch = {"input_ids": torch.arange(2, 10)[None]}
    one, two = (ns.load(folder)(**batch).last_hidden_state for folder in (out, again))
    assert torch.allclose(one, two, atol=1e-5)


def test_plan_only_writes_nothing_else(model, tmp_path):
    done = run("compress", model / "model", "--keep", "0.6", "--calibration", model / "text.txt", "--plan-only",
               "--json", "-", "--portable")  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert {d["form"] for d in plan["decisions"]} <= {"dense", "factors", "joint", "neurons", "channel", "spatial"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--keep", "0.5"), "name a folder for the model"),
        (("--keep", "0.5", "--plan-only"), "needs a place for the plan"),
        (("--keep", "1.5", "-o", "x"), "between 0 and 1"),
        (("--keep", "0.5", "--max-bytes", "3", "-o", "x"), "one budget at a time"),
        (("--calibration", "missing.txt", "-o", "x"), "missing.txt"),
        (("--max-parameters", "10", "-o", "x"), "cannot be met"),
        (("--include", "nothing*", "-o", "x"), "no layer is selected"),
    ],
)
def test_refusals_are_one_line(model, tmp_path, arguments, says):
    done = run("compress", model / "model", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "x").exists()

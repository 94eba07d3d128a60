"""``netspectra compare`` as a user meets it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import small_model, write_single
from tests.faces.test_cli import run


@pytest.fixture
def files(tmp_path):
    before = write_single(tmp_path / "a.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in small_model().items()}
    save_file(half, tmp_path / "b.safetensors")
    noisy = {k: v + 0.1 * torch.randn_like(v) if v.is_floating_point() else v for k, v in small_model().items()}
    save_file(noisy, tmp_path / "c.safetensors")
    return before, tmp_path / "b.safetensors", tmp_path / "c.safetensors"


def test_the_exit_code_answers_whether_it_is_the_same(files):
    a, b, c = files
    same = run("compare", a, b, "--fail-on", "changed")
    assert same.returncode == 0 and "same-up-to-precision" in same.stdout and not same.stderr
    other = run("compare", a, c, "--fail-on", "changed", "--json", "-")
    assert other.returncode == 3 and json.loads(other.stdout)["summary"]["lineage"] == "modified"


def test_files_and_usage(files, tmp_path):
    a, b, c = files
    page = tmp_path / "page.html"
    several = run("compare", a, b, c, "--html", page, "--csv", tmp_path / "t.csv")
    assert several.returncode == 0 and "do not certify" in several.stdout and page.read_text().startswith("<!doctype")
    wrong = run("compare", a, b, "--fail-on", "nonsense")
    assert wrong.returncode == 2 and "give one of identical" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_an_adapter_of_the_difference(files, tmp_path):
    a, _, c = files
    made = run("compare", a, c, "--extract-lora", "0.9", "-o", tmp_path / "adapter", "--advise-lora")
    assert made.returncode == 0 and "of the energy of the change" in made.stdout and "beyond noise" in made.stdout
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {p.name for p in (tmp_path / "adapter").iterdir()}
    for wrong in (["--extract-lora", "2"], ["--extract-lora", "2.5", "-o", tmp_path / "x"]):
        refused = run("compare", a, c, *wrong)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    start = run("pissa", a, "--rank", "2", "-o", tmp_path / "start")
    assert start.returncode == 0 and (tmp_path / "start" / "base" / "model.safetensors").exists(), start.stderr


def test_run_files(files, tmp_path):
    a, _, c = files
    for name, path in (("a", a), ("c", c)):
        assert run("analyze", path, "--run", tmp_path / f"{name}.run", "-q").returncode == 0
    one, other = tmp_path / "a.run", tmp_path / "c.run"
    same = run("compare", one, a, "--fail-on", "changed")
    assert same.returncode == 0 and "0 of" in same.stdout and "Not answered" in same.stdout, same.stderr
    moved = run("compare", one, other, "--fail-on", "changed", "--json", "-")
    assert moved.returncode == 3 and json.loads(moved.stdout)["differs"] is True
    refused = run("compare", one, other, "--fail-on", "fine-tuned")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1

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

"""``netspectra trainability``: what is printed, where, and the exit code."""

import json

import numpy as np
import pytest

from tests.faces.test_cli import run

MODELS = """
from torch import nn

def deep():
    return nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Tanh())), nn.Linear(8, 3))

def tokens():
    return nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 4))

def nothing():
    return 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "mymodels_of_a_test.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    return "mymodels_of_a_test"


def test_table_files_and_exit_code(models, tmp_path):
    page, data = tmp_path / "depth.html", tmp_path / "depth.json"
    done = run("trainability", f"{models}:deep", "--input-shape", "6,8", "--html", page, "--json", data,
               "--fail-on", "warn")  # fmt: skip
    assert done.returncode == 3 and "end-to-end Jacobian 3 x 8 (exact)" in done.stdout
    assert "signal-lost" in done.stdout and "failing on signal-lost" in done.stderr
    assert json.loads(data.read_text())["samples"] == 6 and "default-src 'none'" in page.read_text()
    again = run("trainability", f"{models}:deep", "--input-shape", "6,8", "--json", "-")
    assert again.returncode == 0 and again.stdout == data.read_text()


def test_batches_from_files_and_tokens(models, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 8)).astype("float32"))
    assert ", 4 samples" in run("trainability", f"{models}:deep", "--batch", tmp_path / "x.npy", "--samples", 4).stdout
    done = run("trainability", f"{models}:tokens", "--input-shape", "3,4", "--vocabulary", 20)
    assert done.returncode == 0 and "from output of 0" in done.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["mymodels_of_a_test:deep"], "either --batch FILE or --input-shape"),
        (["mymodels_of_a_test:deep", "--input-shape", "2,x"], "positive whole numbers"),
        (["mymodels_of_a_test:deep", "--input-shape", "2,7"], "RuntimeError on these inputs"),
        (["mymodels_of_a_test:nothing", "--input-shape", "2,7"], "returned int"),
        (["no_such_module:deep", "--input-shape", "2,7"], "no module 'no_such_module'"),
        (["mymodels_of_a_test:deep", "--input-shape", "2,8", "--fail-on", "magic"], "signal-lost"),
    ],
)
def test_wrong_usage_is_one_line(models, arguments, said):
    done = run("trainability", *arguments)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout

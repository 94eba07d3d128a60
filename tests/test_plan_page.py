"""The page of a plan: columns that say something, figures in which what was measured can be told apart."""

import json
import re

import pytest
import torch

import netspectra as ns
from netspectra.plan import Cost, Decision, Plan
from netspectra.report.plan_page import decisions_table, render_plan


def perceptron():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.ReLU(), torch.nn.Linear(96, 10))


def headings(document):
    return re.findall(r"<th[^>]*>([^<]*)</th>", decisions_table(document))


def test_columns_that_say_nothing_are_left_out():
    quantized = ns.quantize(perceptron(), bits=4.4).to_dict()
    assert headings(quantized) == ["layer", "kind", "form", "bytes", "bits"]
    compressed = ns.compress(perceptron(), keep=0.5).to_dict()
    assert headings(compressed) == ["layer", "kind", "form", "size", "parameters", "kept"]
    partly = ns.quantize(perceptron(), bits=4.4, exclude=("2*",)).to_dict()
    assert headings(partly) == ["layer", "kind", "form", "bytes", "bits", "why"]
    planned = ns.quantize(perceptron(), bits=6, calibration=[torch.randn(64, 48)], ranks=(0, 4), levels=(2,)).to_dict()
    assert "loss" in headings(planned)


def test_every_row_has_a_cell_a_column():
    document = ns.quantize(perceptron(), bits=4.4, exclude=("2*",)).to_dict()
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", decisions_table(document))
    assert len(rows) == 3 and {len(re.findall("<t[hd]", row)) for row in rows} == {6}


def test_quantization_without_data_speaks_of_no_truncation():
    assert not any("truncation" in note for note in ns.quantize(perceptron(), bits=4.4).notes)
    assert any("truncation" in note for note in ns.compress(perceptron(), keep=0.5).notes)


def plan(measured, predicted):
    decision = Decision("a<b>", "linear", ("a<b>",), "int4", 0, Cost(100, 400), Cost(100, 50), 0.1, "as & when")
    points = [{"keep": 1.0, "bytes": 10 * i + 10, "loss": loss} for i, loss in enumerate(predicted)]
    totals = dict.fromkeys(("model_before", "model_after", "selected_before", "selected_after"), Cost(100, 50))
    held = {"candidates": {"allocated": {"loss": measured, "cosine": 0.99997}}, "kept": "allocated"}
    return Plan((decision,), "quantize", {"bits": 4, "budget": "bits", "heal_rate": 1e-4}, totals, held, tuple(points))


def figure(page):
    return json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.S)[1])["figures"][0]


def test_sizes_that_lose_next_to_nothing_leave_room_for_what_was_measured():
    page = render_plan(plan(1e-3, [1.0, 1e-2, 1e-4, 1e-8, 1e-15, 0.0]).to_dict())
    line, point = figure(page)["data"]
    assert line["y"] == [1.0, 1e-2, 1e-4] and point["y"] == [1e-3]
    assert "hundredth" in page
    whole = render_plan(plan(1e-3, [1.0, 1e-2, 1e-4]).to_dict())
    assert figure(whole)["data"][0]["y"] == [1.0, 1e-2, 1e-4] and "hundredth" not in whole


def test_without_anything_measured_every_size_is_drawn():
    made = plan(1e-3, [1.0, 1e-8, 1e-15])
    document = {**made.to_dict(), "held_out": {}}
    drawn = figure(render_plan(document))
    assert drawn["data"][0]["y"] == [1.0, 1e-8, 1e-15]
    assert drawn["layout"]["yaxis"]["dtick"] == 2  # every other decade of fifteen


def test_what_was_asked_for_and_what_was_found_is_told_once():
    page = render_plan(plan(1e-3, [1.0]).to_dict())
    assert "0.999970" in page and "heal" not in page and "budget" not in page
    assert "a&lt;b&gt;" in page and "as &amp; when" in page and "a<b>" not in page


@pytest.mark.parametrize("width", [1200, 420])
def test_nothing_is_cut_off(width, browser, tmp_path):
    """The legend ends within the figure, and the page is no wider than the window."""
    made = plan(1e-3, [1.0, 1e-2, 1e-3])
    held = dict(made.held_out) | {"rounding": {f"int{i}": {"loss": 1e-3 * i, "bytes": 20 * i} for i in (4, 8)}}
    ways = {"uniform": 1e-2, "random": 1e-3, "predicted": 1e-4}
    held["frontier"] = [{"bits": b, "bytes": 10 * b, "samples": 8, "losses": ways} for b in (4, 3, 2)]
    (tmp_path / "page.html").write_text(render_plan({**made.to_dict(), "held_out": held}))
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    for place in range(2):
        box = page.locator("figure").nth(place)
        box.scroll_into_view_if_needed()
        box.locator(".legend").wait_for()
        outer = box.bounding_box()
        title = box.locator(".xtitle").bounding_box()
        legend = box.locator(".legend").bounding_box()
        assert title["y"] + title["height"] <= legend["y"] + 1
        assert legend["y"] + legend["height"] <= outer["y"] + outer["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()

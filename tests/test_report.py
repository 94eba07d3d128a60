"""The HTML report: inert, complete, small, and usable by mouse and keyboard."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netspectra as ns
from netspectra.report import pictures, render, render_geometry
from netspectra.report.curves import decimate, density, index_grid, rounded
from netspectra.report.page import asset, encode
from netspectra.report.payload import payload

GLOSSARY: list[dict[str, str]] = [
    {
        "name": name,
        "title": title,
        "formula": formula,
        "meaning": meaning,
        "reference": reference,
        "range": where,
    }
    for name, title, formula, meaning, reference, where in [
        ("count", "Number of values", "min(m, n)", "How many singular values the matrix has.", "", "1 and up"),
        ("sigma_max", "Largest σ", "σ₁", "The largest stretch of any input direction.", "", "0 and up"),
        ("sigma_min", "Smallest σ", "σₙ", "The least stretch; zero where a direction is lost.", "", "0 and up"),
        (
            "spectral_norm",
            "Spectral norm",
            "‖W‖₂ = σ₁",
            "The Lipschitz constant of the layer as a linear map.",
            "",
            "0 and up",
        ),
        (
            "frobenius_norm",
            "Frobenius norm",
            "‖W‖_F = √(Σ σᵢ²)",
            "The total energy: the root of the sum of squares of all entries.",
            "",
            "0 and up",
        ),
        ("nuclear_norm", "Nuclear norm", "Σ σᵢ", "A convex stand-in for the rank.", "Fazel 2002", "0 and up"),
        (
            "condition_number",
            "Condition number",
            "κ = σ₁ / σₙ",
            "How unevenly directions are stretched. Large for nearly every trained layer, so read others too.",
            "",
            "1 and up",
        ),
        (
            "stable_rank",
            "Stable rank",
            "‖W‖_F² / σ₁²",
            "How many directions carry energy like the first; robust against small values.",
            "Rudelson and Vershynin 2007",
            "1 to min(m, n)",
        ),
        (
            "effective_rank",
            "Effective rank",
            "exp(−Σ pᵢ ln pᵢ), pᵢ = σᵢ / Σ σ",
            "The exponential of the entropy of the spectrum.",
            "Roy and Vetterli 2007",
            "1 to min(m, n)",
        ),
        ("k90", "Rank for 90 % of the energy", "least k: Σᵢ≤k σᵢ² ≥ 0.9 Σ σᵢ²", "What a truncation keeps.", "", "1 up"),
        (
            "alpha",
            "Power law exponent",
            "ρ(λ) ∼ λ^−α",
            "How heavy the tail of the spectrum is; well trained layers often lie between 2 and 6.",
            "Martin and Mahoney 2018",
            "1 and up",
        ),
    ]
]


def metrics_of(values: np.ndarray) -> dict[str, Any]:
    """The values' metrics, as an analysis would write them."""
    positive = values[values > 0]
    if not positive.size:
        return {"count": len(values), "sigma_max": 0.0 if len(values) else None, "condition_number": None}
    energy = np.cumsum(values**2)
    share = values / values.sum()
    share = share[share > 0]
    alpha = 2 + 3 / (1 + float(np.log(values[0] / np.median(positive))))
    return {
        "count": len(values),
        "sigma_max": float(values[0]),
        "sigma_min": float(values[-1]),
        "spectral_norm": float(values[0]),
        "frobenius_norm": float(np.sqrt(energy[-1])),
        "nuclear_norm": float(values.sum()),
        "condition_number": float(values[0] / values[-1]) if values[-1] > 0 else None,
        "stable_rank": float(((values / values[0]) ** 2).sum()),
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
        "k90": int(np.searchsorted(energy, 0.9 * energy[-1])) + 1,
        "alpha": {"value": alpha, "low": alpha - 0.3, "high": alpha + 0.4, "tail": 120, "p": 0.41}
        if len(positive) > 50
        else {"value": None, "note": "only 8 values in the tail"},
    }


def weight_of(name: str, kind: str, shape: tuple[int, int], values: np.ndarray, **more: Any) -> dict[str, Any]:
    """One row of an analysis."""
    return {
        "name": name,
        "kind": kind,
        "shape": list(shape),
        "dtype": "bfloat16",
        "aliases": [],
        "parameters": shape[0] * shape[1],
        "spectrum": {"how": "exact", "error": 1e-6 * float(values[0]) if len(values) else 0.0, "values": list(values)},
        "metrics": metrics_of(values),
        "verdicts": [],
        "notes": [],
        **more,
    }


def heavy(rng: np.random.Generator, shape: tuple[int, int], spikes: int, scale: float) -> np.ndarray:
    """Singular values like those of a trained matrix: a random bulk, a power law above it, a soft lower edge."""
    m, n = max(shape), min(shape)
    ratio = n / m
    at = (np.arange(n) + 0.5) / n
    bulk = 1 - np.sqrt(ratio) * (2 * at**0.9 - 1) * 0.97
    head = 1 + 2.2 * (spikes / (np.arange(n) + 1)) ** 0.55 * np.exp(-np.arange(n) / (0.3 * n))
    values = scale * bulk * head * np.exp(0.01 * rng.standard_normal(n))
    return np.sort(np.maximum(values, 1e-4 * scale))[::-1]


def transformer(layers: int = 12, width: int = 384) -> dict[str, Any]:
    """An analysis of a small transformer with a convolutional stem, some verdicts and some skipped tensors."""
    rng = np.random.default_rng(7)
    weights = [
        weight_of("embeddings.word_embeddings.weight", "embedding", (30522, width), heavy(rng, (30522, width), 60, 3.0))
    ]
    weights[0]["aliases"] = ["lm_head.weight"]
    weights[0]["notes"] = ["tied to lm_head.weight; counted once"]
    for i, (out, into) in enumerate([(64, 27), (128, 576)]):
        values = heavy(rng, (out, into), 4, 1.5)
        operator = {"how": "estimated", "error": 1e-4, "values": list(np.sort(rng.gamma(2, 0.6, 4 * out))[::-1])}
        weights.append(
            weight_of(
                f"stem.{i}.conv.weight",
                "conv2d",
                (out, into),
                values,
                operator={**operator, "grid": [16, 16], "upper": 4.2},
            )
        )
    shapes = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (4 * width, width),
        "output.dense": (width, 4 * width),
    }
    for layer in range(layers):
        for role, shape in shapes.items():
            spikes = 3 + 2 * layer if "query" in role or "key" in role else 4
            scale = (0.5 + 0.05 * layer) * (1.6 if "dense" in role else 1)
            weights.append(
                weight_of(f"encoder.layer.{layer}.{role}.weight", "linear", shape, heavy(rng, shape, spikes, scale))
            )
    verdict(
        weights[9],
        "error",
        "rank_collapse",
        "Half of the directions carry nothing: 190 of 384 values lie at the rounding floor.",
        below_floor=190,
        floor=2.4e-4,
    )
    for row in weights[12::9]:
        verdict(
            row,
            "warn",
            "outlier_direction",
            "One direction stretches 6.2 times more than the next ten together.",
            ratio=6.21,
            direction=1,
        )
    for row in weights[5::4]:
        verdict(
            row, "note", "heavy_tail", "The tail is heavier than that of well trained layers.", alpha=1.83, range=[2, 6]
        )
    for row in weights[4::5]:
        verdict(row, "ok", "bulk", "The bulk follows the law of a random matrix.", distance=0.02)
    skipped = [
        {"name": f"encoder.layer.{i}.{part}", "shape": [width], "reason": "a vector: no singular values"}
        for i in range(layers)
        for part in ("output.LayerNorm.weight", "output.dense.bias")
    ]
    skipped.append({"name": "embeddings.position_ids", "shape": [1, 512], "reason": "integers: an index, not a weight"})
    parameters = sum(row["parameters"] for row in weights)
    return document(
        weights,
        skipped,
        {
            "path": "all-minilm-l6/model.safetensors",
            "format": "safetensors",
            "fingerprint": "9b1e52d0c3aa",
            "parameters": parameters + 40_000,
            "tensors": len(weights) + len(skipped),
        },
    )


def verdict(row: dict[str, Any], level: str, rule: str, message: str, **evidence: Any) -> None:
    """Add a verdict to a row."""
    row["verdicts"].append({"rule": rule, "level": level, "message": message, "evidence": evidence})


def document(
    weights: list[dict[str, Any]], skipped: list[dict[str, Any]] | None = None, source: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON of an analysis around these rows."""
    return {
        "schema": 1,
        "netspectra": "0.1.0",
        "source": source
        or {
            "path": "model.safetensors",
            "format": "safetensors",
            "fingerprint": "",
            "parameters": 0,
            "tensors": len(weights),
        },
        "options": {"accuracy": 1e-6, "metrics": "default", "seed": 0},
        "weights": weights,
        "skipped": skipped or [],
        "summary": {"weights": len(weights)},
    }


def large(layers: int = 300, count: int = 4096) -> dict[str, Any]:
    """An analysis of many large layers."""
    rng = np.random.default_rng(1)
    roles = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    rows = []
    for i in range(layers):
        name = f"model.layers.{i // 6}.{roles[i % 6]}.weight"
        rows.append(weight_of(name, "linear", (count, count), heavy(rng, (count, count), 3 + i % 17, 1 + i / 100)))
    return document(rows)


HOSTILE = [
    "</script><script>window.hit=1</script>",
    "<img src=x onerror=window.hit=2>",
    "\"'><svg onload=window.hit=3>",
    "nul\0name",
    "right\u202eto\u2066left",
    "esc\x1b[31mred",
    "__proto__",
    "constructor",
    "",
    "a" * 20_000,
    "javascript:window.hit=4",
    '<a href="javascript:window.hit=5">x</a>%{customdata}<b>bold</b>',
    "\u2028line\u2029paragraph",
    "lone\ud800surrogate",
    "$policy ${script}",
]


def hostile() -> dict[str, Any]:
    """An analysis every string of which is an attack."""
    values = np.array([3.0, 2.0, 1.0, 0.5])
    rows = []
    for i, text in enumerate(HOSTILE):
        row = weight_of(text, text[:200], (4, 4), values * (i + 1), dtype=text[:100], aliases=[text, "x"], notes=[text])
        row["metrics"][text[:300] or "blank"] = {"value": None, "note": text}
        verdict(row, "warn", text, text, key=text, proto={text: [text]})
        rows.append(row)
    source = {
        "path": HOSTILE[0],
        "format": HOSTILE[1],
        "fingerprint": HOSTILE[2],
        "parameters": 1,
        "tensors": 1,
        "__proto__": HOSTILE[4],
    }
    out = document(rows, [{"name": text, "shape": [1], "reason": text} for text in HOSTILE], source)
    out["summary"] = {text: text for text in HOSTILE}
    out["netspectra"] = HOSTILE[0]
    return out


HOSTILE_GLOSSARY: list[dict[str, str]] = [
    dict.fromkeys(("name", "title", "formula", "meaning", "reference", "range"), text) for text in HOSTILE[:3]
]


def odd() -> dict[str, Any]:
    """Spectra that are empty, single, zero, null, subnormal or huge."""
    rows = [
        weight_of("empty", "linear", (0, 4), np.array([])),
        weight_of("single", "linear", (1, 9), np.array([2.0])),
        weight_of("zeros", "linear", (4, 4), np.zeros(4)),
        weight_of("deficient", "linear", (6, 6), np.array([3.0, 2.0, 1.0, 0.0, 0.0, 0.0])),
        weight_of("subnormal", "linear", (3, 3), np.array([1e-310, 1e-312, 5e-324])),
        weight_of("huge", "conv2d", (3, 3), np.array([1e150, 1e149, 1e10])),
    ]
    rows.append(weight_of("holes", "linear", (4, 4), np.array([4.0, 2.0, 1.0, 0.5])))
    rows[-1]["spectrum"]["values"] = [4.0, None, 1.0, None]
    rows[-1]["spectrum"]["error"] = [0.1, None, 2.0, None]
    rows.append(weight_of("nothing known", "linear", (2, 2), np.array([1.0])))
    rows[-1]["spectrum"] = {"how": "estimated", "error": None, "values": [None, None]}
    rows[-1]["metrics"] = {}
    return document(rows)


def data_of(page: str) -> Any:
    """The data block of a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


# Python alone


def test_same_document_same_bytes() -> None:
    assert render(transformer(), GLOSSARY) == render(json.loads(json.dumps(transformer())), GLOSSARY)


def test_policy_comes_first_and_its_hashes_are_those_of_the_page() -> None:
    page = render(transformer(2), GLOSSARY)
    policy = re.search(r'<head>\n<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy
    scripts = re.findall(r'<script(?: type="text/plain" id="library")?>(.*?)</script>', page, re.DOTALL)
    styles = [*re.findall(r"<style>(.*?)</style>", page, re.DOTALL), ""]
    assert (len(scripts), len(styles)) == (2, 2)

    def digests(texts: list[str]) -> set[str]:
        return {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts}

    rules = {rule.split()[0]: set(rule.split()[1:]) for rule in policy[1].split(";")}
    assert rules["default-src"] == {"'none'"}
    assert rules["script-src"] == digests(scripts)
    assert rules["style-src"] == digests(styles)
    assert rules["base-uri"] == rules["form-action"] == {"'none'"}
    assert "unsafe" not in policy[1]


def test_the_frame_has_no_inline_styles_handlers_or_addresses() -> None:
    page = render(transformer(2), GLOSSARY)
    frame = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\sstyle=|\son\w+=", frame)
    assert not re.search(r"""(src|href)=["'](?!#|data:image/svg)""", frame)


def test_no_string_of_the_document_is_markup() -> None:
    page = render(hostile(), HOSTILE_GLOSSARY)
    page.encode()
    block = page[page.index('id="data">') + 10 :]
    block = block[: block.index("</script>")]
    assert not re.search(r"[<>&\u2028\u2029\x00]", block)
    assert [row["name"] for row in data_of(page)["weights"]] == HOSTILE
    outside = page.replace(block, "")
    assert "window.hit" not in outside and "onerror=window" not in outside


def test_encode_escapes_what_could_end_the_block() -> None:
    assert encode(["<!--", "&", "\u2028"]) == '["\\u003c!--","\\u0026","\\u2028"]'


def test_size_of_300_layers_of_4096() -> None:
    page = render(large(), GLOSSARY)
    print(f"300 x 4096: {len(page.encode()) / 1e6:.2f} MB")
    assert len(page.encode()) < 6e6


@pytest.mark.parametrize("count", [0, 1, 2, 250, 251, 4096, 100_000])
def test_decimation_keeps_ends_and_extremes(count: int) -> None:
    values = np.geomspace(10, 1e-3, count) if count else np.array([])
    grid, curve = decimate(values)
    assert grid == index_grid(count) and len(grid) == len(curve) <= 290
    assert len(set(grid)) == len(grid) and list(grid) == sorted(grid)
    if count:
        assert (grid[0], grid[-1]) == (0, count - 1)
        assert curve[0] == rounded(values[0]) and curve[-1] == rounded(values[-1])


def test_decimation_keeps_extremes_that_lie_between() -> None:
    values = np.geomspace(10, 1, 4096)
    values[777], values[3001] = 50.0, 1e-9
    _, curve = decimate(values)
    assert 50.0 in curve and 1e-9 in curve
    deficient = np.concatenate([np.geomspace(10, 1, 2001), np.zeros(2095)])
    assert 1 in decimate(deficient)[1]


@pytest.mark.parametrize("edge", [None, 0.5, 40.0])
@pytest.mark.parametrize("count", [1, 5, 384, 4096])
def test_every_value_is_in_the_histogram_or_said_to_be_beyond(count: int, edge: float | None) -> None:
    values = np.sort(np.random.default_rng(count).gamma(2, 1, count))[::-1]
    found = density(values, edge)
    assert found is not None
    assert sum(found["counts"]) + found["beyond"] == count and len(found["counts"]) <= 60
    assert found["beyond"] == np.sum(values > found["to"] * (1 + 1e-4))
    assert found["to"] >= min(values[0], 2.5 * (edge or np.inf)) * (1 - 1e-4)


@pytest.mark.parametrize("values", [None, [], [0.0, 0.0], [None, None]])
def test_no_histogram_of_nothing(values: Any) -> None:
    assert density(values, 1.0) is None


def test_layers_of_one_count_share_their_grid() -> None:
    assert len(payload(large(20), GLOSSARY)["grids"]) == 1


def test_non_finite_numbers_become_null() -> None:
    row = weight_of("w", "linear", (2, 2), np.array([1.0, 0.5]))
    row["metrics"]["alpha"] = {"value": float("nan"), "note": "too few"}
    row["spectrum"]["values"] = [float("inf"), float("nan")]
    data = data_of(render(document([row]), GLOSSARY))
    assert data["weights"][0]["spectrum"]["values"] == [None, None]
    assert {"value": None, "note": "too few"} in data["weights"][0]["metrics"]


@pytest.mark.parametrize("empty", [{}, document([]), {"schema": 1, "weights": [{}]}])
def test_little_or_nothing_still_gives_a_page(empty: dict[str, Any]) -> None:
    assert render(empty, []).startswith("<!DOCTYPE html>")


# In a browser


class Visit:
    """One page opened in the browser, with everything that it should not have done."""

    def __init__(self, browser: Any, html: str, folder: Path, **context: Any) -> None:
        path = folder / "report.html"
        path.write_text(html, encoding="utf-8")
        self.context = browser.new_context(viewport={"width": 1400, "height": 900}, **context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " e => console.error('CSP ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))"
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", timeout=60_000)
        self.own = path.as_uri()

    def foreign(self) -> list[str]:
        """Requests for anything but the page and pictures in it."""
        return [
            url for url in self.requests if url.split("#")[0] != self.own and not url.startswith(("data:", "blob:"))
        ]

    def names(self) -> list[str]:
        """Names in the table as it stands."""
        return self.page.locator("#table tbody .c-name").all_inner_texts()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open a page; at the end nothing may have been complained about or fetched."""
    opened: list[Visit] = []

    def start(document: dict[str, Any] | str, glossary: list[dict[str, str]] = GLOSSARY, **context: Any) -> Visit:
        page = document if isinstance(document, str) else render(document, glossary)
        opened.append(Visit(browser, page, tmp_path, **context))
        return opened[-1]

    yield start
    for each in opened:
        complaints, foreign = each.complaints, each.foreign()
        each.context.close()
        assert complaints == []
        assert foreign == []


@pytest.mark.browser
def test_everything_works_without_complaint(visit: Any) -> None:
    page = visit(transformer()).page
    page.locator("#depth-chart").scroll_into_view_if_needed()
    page.wait_for_selector("#depth-chart .main-svg")
    page.locator("#depth-controls select").first.select_option("stable_rank")
    page.locator("#spectra-controls select").first.select_option("lines")
    page.locator("#spectra-controls select").nth(1).select_option("role")
    page.locator("#spectra-chart").scroll_into_view_if_needed()
    page.locator("#spectra-chart .nsewdrag").first.hover()
    page.locator("#spectra-controls input").first.uncheck()
    offers = page.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title + ' ' + b.dataset.attr)"
    )
    assert offers and not re.search("cloud|share|edit|upload|link", " ".join(offers), re.IGNORECASE)
    with page.expect_download() as download:
        page.locator("#spectra-chart .modebar-btn").first.click()
    assert download.value.suggested_filename == "netspectra-spectra.png"
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.browser
def test_hostile_strings_run_nothing_and_are_seen_escaped(visit: Any) -> None:
    page = visit(hostile(), HOSTILE_GLOSSARY).page
    names = []
    for index in range(len(HOSTILE)):
        page.evaluate(f"location.hash = '#weight-{index + 1}'")
        page.wait_for_selector(f"#table tr[data-index='{index}'][aria-selected=true]")
        names.append(page.inner_text("#details-title"))
    page.locator("#depth-chart").scroll_into_view_if_needed()
    page.wait_for_selector("#depth-chart .main-svg")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("window.hit") is None
    assert page.locator("main img, main a[href^='javascript']").count() == 0
    assert names[0] == HOSTILE[0] and names[1] == HOSTILE[1]
    assert "nul\\x00name" in names and "right\\u202eto\\u2066left" in names and "esc\\x1b[31mred" in names
    text = page.inner_text("body")
    assert not re.search("[\0\x1b\u202a-\u202e\u2066-\u2069]", text)
    assert page.evaluate("Object.prototype.polluted") is None


@pytest.mark.browser
def test_sorting_by_mouse_and_keyboard(visit: Any) -> None:
    seen = visit(transformer())
    page = seen.page
    header = page.locator("#table thead th", has_text="Stable rank")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    column = [
        float(text.replace("\u2009", ""))
        for text in page.locator("#table tbody tr td.c-metric:nth-child(10)").all_inner_texts()
    ]
    assert column == sorted(column, reverse=True) and len(column) == 75
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"


@pytest.mark.browser
def test_search_and_filters(visit: Any) -> None:
    seen = visit(transformer())
    page = seen.page
    page.locator("#search").fill("layer.1 query")
    assert all("query" in name and "layer.1" in name for name in seen.names()) and len(seen.names()) == 3
    page.locator("#search").fill("lm_head")
    assert seen.names() == ["embeddings.word_embeddings.weight"]
    page.locator("#search").fill("")
    page.locator("#filters select").first.select_option(label="conv2d (2)")
    assert len(seen.names()) == 2
    page.locator("#search").fill("no such thing")
    assert "No weight passes" in page.inner_text("#table")


@pytest.mark.browser
def test_choosing_by_keyboard_shows_details(visit: Any) -> None:
    page = visit(transformer()).page
    page.locator("#table tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#details-title") == "stem.0.conv.weight"
    assert page.inner_text("#details").count("Largest σ") == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.locator("#table tr[aria-selected=true]").count() == 2
    assert page.locator("#details .comparison thead th").count() == 3
    page.wait_for_selector("#details .main-svg")
    page.keyboard.press("Escape")
    assert page.locator("#table tr[aria-selected=true]").count() == 0


@pytest.mark.browser
def test_verdicts_link_to_their_row(visit: Any) -> None:
    page = visit(transformer()).page
    page.locator(".rule.error a").first.click()
    assert page.inner_text("#details-title") == "encoder.layer.1.attention.self.query.weight"
    assert "190" in page.inner_text("#details .evidence")


@pytest.mark.browser
@pytest.mark.parametrize("make", [odd, lambda: document([]), dict], ids=["odd", "no weights", "no document"])
def test_odd_documents_are_drawn(visit: Any, make: Any) -> None:
    page = visit(make()).page
    for row in page.locator("#table tbody tr[data-index]").all():
        row.click()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(300)
    assert "NaN" not in page.inner_text("main") and "undefined" not in page.inner_text("main")


def noisy(spikes: int = 3) -> dict[str, Any]:
    """A real thorough analysis: noise with planted directions, beside a matrix without a bulk."""
    import torch

    generator = torch.Generator().manual_seed(0)
    planted = torch.randn(80, 120, generator=generator)
    planted[:spikes] *= 6
    heavy = torch.diag(torch.arange(1, 201, dtype=torch.float64) ** -0.25)
    return ns.analyze({"small": torch.eye(4), "planted": planted, "heavy": heavy}, thorough=True, workers=1).to_dict()


@pytest.mark.browser
def test_bulk_and_tail_follow_the_choice_and_say_why_something_is_missing(visit: Any) -> None:
    from netspectra.analysis import glossary
    from netspectra.metrics import METRICS

    page = visit(noisy(), glossary(list(METRICS))).page
    page.locator("#reading").scroll_into_view_if_needed()
    page.wait_for_selector("#bulk-chart .main-svg")
    page.wait_for_selector("#tail-chart .main-svg")
    assert page.locator("#reading-controls option:checked").inner_text() == "planted"  # has a bulk and a tail
    text = page.inner_text("#reading-words")
    assert "3 of 80 values beyond" in text and "Strength before noise" in text
    assert "Beside its randomised twin" in text
    assert page.locator("#bulk-chart .shapelayer path").count() == 2  # the edge of the bulk, the calibrated one
    page.locator("#reading-controls button", has_text="Next").click()
    assert page.inner_text("#details-title") == "heavy"
    text = page.inner_text("#reading-words")
    assert "Rival laws" in text and "lognormal" in text and "a power law is not contradicted" in text
    page.locator("#reading-controls select").select_option(label="small")
    assert "only 4 values, a bulk needs 10" in page.inner_text("#bulk-note")
    assert "No power law" in page.inner_text("#tail-note")
    assert "Against noise" not in page.inner_text("#reading-words")


def looked_at(**more: Any) -> dict[str, Any]:
    """The geometry of a layer with inputs."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((60, 12)) + 1
    return {**ns.geometry(rng.standard_normal((12, 12)), inputs, labels=["0", "1", "2"] * 20).to_dict(), **more}


@pytest.mark.browser
def test_geometry_goes_step_by_step_by_mouse_and_keyboard(visit: Any) -> None:
    page = visit(render_geometry(looked_at()), reduced_motion="reduce").page
    picture = "document.querySelectorAll('canvas')[{}].toDataURL()"
    seen = [[page.evaluate(picture.format(i)) for i in (0, 1)]]
    for step in (1, 2, 3):
        page.locator(".step").nth(step).click()
        assert page.locator(".step").nth(step).get_attribute("aria-pressed") == "true"
        seen.append([page.evaluate(picture.format(i)) for i in (0, 1)])
    assert len({pair[0] for pair in seen}) == len({pair[1] for pair in seen}) == 4
    page.locator(".slide input").focus()
    page.keyboard.press("Home")
    assert [page.evaluate(picture.format(i)) for i in (0, 1)] == seen[0]
    assert page.locator(".step").first.get_attribute("aria-pressed") == "true"
    page.locator("canvas").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(picture.format(0)) != seen[0][0]
    assert "The inputs as they come" in page.inner_text("[role=status]")
    assert page.locator("table tbody tr").count() == 8
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.browser
def test_geometry_moves_unless_motion_is_unwanted(visit: Any) -> None:
    page = visit(render_geometry(looked_at()), reduced_motion="no-preference").page
    page.locator(".step").nth(3).click()
    between = page.evaluate("document.querySelector('.slide input').value")
    assert float(between) < 3
    page.wait_for_selector(".slide input[aria-valuetext^='U S']")
    page.wait_for_timeout(3500)
    assert page.evaluate("document.querySelector('.slide input').value") == "3"
    page.get_by_role("button", name="Play").click()
    assert page.get_by_role("button", name="Pause").count() == 1
    page.get_by_role("button", name="Pause").click()
    calm = visit(render_geometry(looked_at()), reduced_motion="reduce").page
    calm.locator(".step").nth(3).click()
    assert calm.evaluate("document.querySelector('.slide input').value") == "3"


@pytest.mark.browser
@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (2, 5), (1, 1)])
def test_flat_geometries_are_drawn(visit: Any, shape: tuple[int, int]) -> None:
    weight = np.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape)
    page = visit(render_geometry(ns.geometry(weight, np.ones((3, shape[1]))).to_dict()), reduced_motion="reduce").page
    for step in range(4):
        page.locator(".step").nth(step).click()
    assert "NaN" not in page.inner_text("main") and "undefined" not in page.inner_text("main")


@pytest.mark.browser
def test_geometry_strings_run_nothing(visit: Any) -> None:
    for text in HOSTILE[:4]:
        page = visit(render_geometry(looked_at(name=text, kind=text, inputs_are=text, notes=[text]))).page
        assert page.evaluate("window.hit") is None and page.locator("main img").count() == 0


@pytest.mark.browser
def test_a_report_shows_the_geometries_asked_for(visit: Any) -> None:
    plain = visit(transformer(2)).page
    assert not plain.locator("#geometry").is_visible()
    both = [looked_at(name="one"), looked_at(name="stem.0.conv.weight", kind="other")]
    page = visit(render(transformer(2), GLOSSARY, both), reduced_motion="reduce").page
    assert page.locator(".bar a[href='#geometry']").is_visible()
    assert page.inner_text("#geometry-hint").startswith("linear, 12 inputs to 12 outputs")
    page.locator("#geometry-controls select").select_option(label="stem.0.conv.weight")
    assert page.inner_text("#geometry-hint").startswith("other")
    page.locator("#geometry-controls select").select_option(label="one")
    page.locator("#table tbody tr").nth(1).click()  # of this weight there is a geometry
    assert page.inner_text("#geometry-hint").startswith("other")
    assert page.locator("#details a[href='#geometry']").count() == 1
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.locator("#geometry canvas").count() == 2


@pytest.mark.browser
def test_two_thousand_rows_stay_usable(visit: Any) -> None:
    page = visit(large(2000, 64)).page
    assert page.locator("#table tbody tr").count() == 100
    page.get_by_role("button", name="Next", exact=True).click()
    assert "101 to 200 of 2\u2009000" in page.inner_text("#shown")
    page.locator("#search").fill("layers.333.q_proj")
    assert page.locator("#table tbody tr").count() == 1


@pytest.mark.browser
def test_narrow_page_does_not_scroll_sideways(visit: Any) -> None:
    page = visit(transformer()).page
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.browser
def test_on_paper_everything_is_drawn_and_light(visit: Any) -> None:
    page = visit(transformer(), color_scheme="dark").page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#spectra-chart .main-svg, #depth-chart .main-svg").count() >= 2
    assert page.evaluate("[document.documentElement.dataset.theme, document.querySelector('#skipped').open]") == [
        "light",
        True,
    ]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme ?? 'auto'") == "auto"
    assert not page.evaluate("document.querySelector('#skipped').open")


@pytest.mark.browser
def test_drawing_time_of_300_layers_of_4096(visit: Any) -> None:
    page = visit(large()).page
    times = page.evaluate("({...document.documentElement.dataset})")
    print(
        f"300 x 4096: table after {times['tableMs']} ms, first chart after {times['chartsMs']} ms,"
        f" of which the library takes {times['libraryMs']} ms and the drawing {times['drawMs']} ms"
    )
    assert int(times["tableMs"]) + int(times["drawMs"]) < 5_000  # ours; the library's own start is not


def test_colours_of_figures_are_those_of_the_light_theme() -> None:
    light = asset("report.css").split("}")[0]
    assert pictures.INKS and all(f"--{name}: {colour};" in light for colour, name in pictures.COLOURS.items())


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_take_the_theme_and_the_policy_holds(visit: Any, scheme: Any) -> None:
    import plotly.graph_objects as go

    lines = go.Figure(go.Scatter(x=[1, 1e3], y=[1e-9, 1e9], line_color=pictures.INKS[0], name=HOSTILE[2]))
    lines.update_layout(title="Powers of ten", template="plotly_white")
    lines.update_xaxes(type="log", title="x")
    lines.update_yaxes(type="log", exponentformat="power", dtick=1)
    cells = go.Figure(go.Heatmap(z=[[0, 1], [1, 0]], colorscale=[[0, "#ffffff"], [1, pictures.INKS[0]]]))
    page = visit(pictures.html_page("$body <b>", "<p>$data</p>", [lines, cells]), color_scheme=scheme).page
    for place in (0, 1):
        page.locator(f"#figure{place}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#figure{place} .main-svg")
    assert page.inner_text("h1") == "$body <b>" and page.inner_text("section > p") == "$data"

    def shown() -> Any:
        line = page.locator("#figure0 .js-line").first.evaluate("one => one.style.stroke")
        return line, page.locator("#figure1 .main-svg").first.evaluate("one => one.style.background")

    light, dark = ("rgb(0, 114, 178)", "rgb(255, 255, 255)"), ("rgb(86, 174, 240)", "rgb(22, 27, 34)")
    assert shown() == (light if scheme == "light" else dark)
    page.locator("#theme").click()
    if scheme == "light":
        page.locator("#theme").click()
    assert shown() == (dark if scheme == "light" else light)

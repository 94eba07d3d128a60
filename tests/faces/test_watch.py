"""The page of a training, complete in a file and live from a server; and the table in the terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import netspectra as ns
from netspectra.timeline import Timeline
from tests.verbs.watch.trainings import plain, train

NASTY = "<img src=x onerror=alert(1)>"
ROOT = Path(__file__).parents[2]
TRAINING = """
import sys, time
sys.path[:0] = sys.argv[2:]
import netspectra as ns
from tests.verbs.watch.trainings import plain, train
net = plain()
with ns.Monitor(net[0], sys.argv[1], optimizer=net[1], budget=None) as monitor:
    train(net, 100_000, before=lambda *_: time.sleep(0.005), after=lambda loss: monitor.note(loss=loss))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A healthy training, and one that blows up."""
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("good", 120), ("bad", 120)):
        net = plain()

        def fault(step, model, optimizer, name=name):
            if name == "bad" and step == 60:
                optimizer.param_groups[0]["lr"] *= 200

        with ns.Monitor(net[0], folder / f"{name}.run", optimizer=net[1], budget=None, spectrum_every=20) as monitor:
            train(net, steps, before=fault, after=lambda loss, monitor=monitor: monitor.note(loss=loss))
    return folder / "good.run", folder / "bad.run"


def opened(browser: Any, address: str) -> tuple[Any, list[str], list[str]]:
    """A page, what it complained of and what it asked for."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda wrong: complaints.append(str(wrong)))
    page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready=yes]", timeout=60_000)
    return page, complaints, asked


def seen_all(page: Any) -> None:
    """Scroll through the page, so that every chart is drawn."""
    for y in range(0, page.evaluate("document.documentElement.scrollHeight"), 500):
        page.evaluate(f"scrollTo(0, {y})")
        page.wait_for_timeout(120)
    waited(page, "document.querySelectorAll('.chart .waiting').length === 0")


def waited(page: Any, condition: str, seconds: float = 30) -> None:
    """Ask until it is so: the page's policy forbids what would wait inside."""
    until = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < until, condition
        page.wait_for_timeout(100)


@pytest.mark.browser
def test_two_runs_beside_each_other_in_one_inert_file(runs, browser, tmp_path):
    good, bad = (Timeline.read(run) for run in runs)
    bad.save(tmp_path / "both.html", good)
    page, complaints, asked = opened(browser, (tmp_path / "both.html").as_uri())
    seen_all(page)
    assert page.locator("h1").inner_text() == "bad.run beside good.run"
    assert page.locator("#alarmlist .badge", has_text="blow-up").count() >= 1
    assert "No alarm was raised: good.run" in page.locator("#alarmcharts").inner_text()
    assert page.locator("#layercharts .js-plotly-plot").count() == 2
    assert page.locator(".js-plotly-plot .hm").count() == 4  # all layers and one layer's spectra, of each run
    assert page.locator("#panels .js-plotly-plot").count() == 8
    page.locator("#controls select").first.select_option(index=len(good.names) - 1)
    seen_all(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert complaints == []
    page.close()


@pytest.mark.browser
def test_names_are_text(runs, browser, tmp_path):
    found = Timeline.read(runs[1])
    weights = tuple({**weight, "name": f"{NASTY}.{i}"} for i, weight in enumerate(found.weights))
    alarms = tuple({**alarm, "name": NASTY, "message": NASTY} for alarm in found.alarms)
    object.__setattr__(found, "weights", weights)
    object.__setattr__(found, "alarms", alarms)
    found.save(tmp_path / "a.html")
    page, complaints, _ = opened(browser, (tmp_path / "a.html").as_uri())
    seen_all(page)
    assert NASTY in page.locator("#alarmlist").inner_text()
    assert page.locator("img").count() == 0
    assert complaints == []
    page.close()


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Path]:
    """The run file of a training that goes on in another process."""
    run = tmp_path / "live.run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", TRAINING, str(run), *sys.path], cwd=ROOT, env=environment)
    try:
        until = time.monotonic() + 90
        while not run.exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.0)
        yield run
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def address(training: Path) -> Iterator[str]:
    """Where ``netspectra watch`` shows it."""
    pytest.importorskip("starlette", reason="the page needs netspectra[watch]")
    pytest.importorskip("uvicorn", reason="the page needs netspectra[watch]")
    process = subprocess.Popen(
        [sys.executable, "-m", "netspectra", "watch", str(training)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=\S{20,}", line)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(line, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield line
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
        assert "Traceback" not in (process.stderr.read() if process.stderr else "")


@pytest.mark.browser
def test_the_page_follows_a_training_that_goes_on(address, browser):
    page, complaints, asked = opened(browser, address)
    waited(page, "document.getElementById('live').textContent.startsWith('live, step')")
    first = page.locator("#live").inner_text()
    waited(page, f"document.getElementById('live').textContent !== {first!r}")
    seen_all(page)
    assert page.locator("#layercharts .js-plotly-plot").count() == 1
    assert all(url.startswith((address.split("?")[0], "data:", "blob:")) for url in asked)
    assert complaints == []
    page.close()

    def answer(url: str, **headers: str) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as found:
                return found.status
        except urllib.error.HTTPError as refused:
            return refused.code

    bare = address.split("?")[0]
    assert answer(address) == 200
    assert answer(bare) == 403
    assert answer(f"{bare}data.json?token=guessed") == 403
    assert answer(address, Host="evil.example") == 400  # a name of a stranger that leads here
    assert answer(f"{bare}docs") == 404
    with urllib.request.urlopen(address, timeout=20) as found:
        page_text = found.read().decode()
        assert "default-src 'none'" in page_text
        assert "connect-src 'self'" in page_text
        assert "unsafe-inline" not in page_text.split("Content-Security-Policy")[1].split(">")[0]
        assert found.headers["Content-Security-Policy"] == "frame-ancestors 'none'"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "netspectra", *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"},
    )  # fmt: skip


def test_a_table_in_the_terminal(runs):
    told = command("watch", str(runs[1]), "--terminal")
    assert told.returncode == 0
    assert "bad.run: step 120, ended" in told.stdout
    assert "blow-up" in told.stdout
    assert any(bar in told.stdout for bar in "▁▂▃▄▅▆▇█")


def test_report_tells_exports_and_refuses(runs, tmp_path):
    good, bad = map(str, runs)
    told = command("report", good)
    assert told.returncode == 0
    assert "sigma_1" in told.stdout
    written = command("report", bad, "--beside", good, "--html", str(tmp_path / "a.html"), "--csv", "-")
    assert written.stdout.startswith("step,name,frobenius_norm,sigma_1")
    assert (tmp_path / "a.html").stat().st_size > 1_000_000
    ns.analyze({"w": __import__("torch").eye(3)}, runfile=tmp_path / "analysis.run")
    refused = command("report", str(tmp_path / "analysis.run"), "--beside", good)
    assert refused.returncode == 2
    assert "--beside is for those of monitors" in refused.stderr
    nothing = command("watch", str(tmp_path / "none.run"))
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "no such run file" in nothing.stderr

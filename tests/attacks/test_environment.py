"""Bad weather: full disks, closed streams, tight limits, signals; the end is clean and the next run goes on."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import netspectra as ns
from tests.checkpoints import write_sharded, write_single
from tests.faces.test_cli import process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")


def shell(line, **options):
    """A line for the shell, in which NS stands for the command."""
    line = line.replace("NS", f"{sys.executable} -m netspectra")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=200, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_sharded(tmp_path_factory.mktemp("weather") / "ckpt")


@pytest.fixture(scope="module")
def want(checkpoint):
    return ns.analyze(checkpoint).to_json()


def clean(done, code):
    assert done.returncode == code, (done.returncode, done.stderr[-1500:])
    assert "Traceback" not in done.stderr and "bug of netspectra" not in done.stderr
    return done


# ---- in one process, many limits -----------------------------------------------------------------------------------

FORKED = """
import json, os, resource, signal, sys
import netspectra as ns
from netspectra.faces.cli import door
import netspectra.faces.cli.commands, netspectra.verbs.analyze, netspectra.report, plotly.offline
folder, checkpoint, limits = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ends = {}
for limit in limits:
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{folder}/err-{limit}", os.O_CREAT | os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        sys.argv = ["netspectra", "analyze", checkpoint, "-q", "--workers", "1", "--run", f"{folder}/{limit}.run",
                    "--json", f"{folder}/{limit}.json", "--csv", f"{folder}/{limit}.csv",
                    "--html", f"{folder}/{limit}.html"]
        os._exit(door.run())
    ends[limit] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ends))
"""
FEW = [0, 4096, 20_000, 90_000, 1_000_000, 20_000_000]
MANY = sorted({*FEW, 1, 50, 100, 2000, 8192, *range(8000, 160_000, 3700), 150_000, 400_000, 3_000_000, 5_500_000})


@pytest.mark.parametrize("sizes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_disk_that_is_full_at_any_write(checkpoint, want, tmp_path, sizes):
    """Sizes at which run file, log, JSON, CSV and HTML cannot grow; then the rerun exports the same."""
    import json

    command = [sys.executable, "-c", FORKED, str(tmp_path), str(checkpoint), json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-1500:]
    ends = {int(size): code for size, code in json.loads(done.stdout).items()}
    assert ends[0] == 4 and ends[20_000_000] == 0 and set(ends.values()) == {0, 4}, ends
    for size, code in ends.items():
        said = (tmp_path / f"err-{size}").read_text()
        if code == 4:
            # below a few hundred bytes not even the message fits
            assert said.startswith("error: ") or size < 200
            assert "Traceback" not in said and "bug of" not in said
            assert ns.analyze(checkpoint, runfile=tmp_path / f"{size}.run", workers=1).to_json() == want
        for suffix in ("json", "csv", "html"):
            file = tmp_path / f"{size}.{suffix}"
            assert not file.exists() or file.read_text().rstrip().endswith(("}", "</html>", "ok", *_verdicts()))
    assert not list(tmp_path.glob("*.part"))


def _verdicts():
    from netspectra.verdicts import RULES

    return [rule.name for rule in RULES]


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="needs root to mount a small disk")
def test_a_real_disk_that_is_full(checkpoint, want, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:
        done = clean(process("analyze", checkpoint, "-q", "--run", disk / "job.run"), 4)
        assert "full" in done.stderr
        (disk / "x").write_bytes(b"")
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert ns.analyze(checkpoint, runfile=disk / "job.run").to_json() == want
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        clean(process("analyze", checkpoint, "-q", "--html", disk / "r.html"), 4)
        clean(process("analyze", checkpoint, "-q", "--run", disk / "other.run"), 4)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="tests/faces has this for ordinary users")
def test_a_folder_that_may_not_be_written(checkpoint, tmp_path):
    """As somebody else: root may write anywhere."""
    script = (
        "import os, sys; import netspectra.verbs.analyze, netspectra.faces.cli.commands\n"
        "from netspectra.faces.cli import door\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "sys.argv = ['netspectra', *sys.argv[1:]]; os._exit(door.run())"
    )
    target = tmp_path / "closed"
    target.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o001:
            pytest.skip("others cannot even look into the folder")
    for option in ("--run", "--html", "--json"):
        command = [sys.executable, "-c", script, "analyze", str(checkpoint), "-q", option, str(target / "x")]
        clean(subprocess.run(command, capture_output=True, text=True, timeout=200), 4)


# ---- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line,code",
    [
        ("NS analyze CKPT --json - >&-", 4),
        ("NS metrics >/dev/full", 4),
        ("NS analyze CKPT -q 2>&-", 0),
        ("NS inspect nowhere.pt 2>/dev/full", 2),
        ("NS metrics | head -c 5 >/dev/null; exit ${PIPESTATUS[0]}", 0),
        ("NS inspect CKPT 2>&1 | head -c 5 >/dev/null; exit ${PIPESTATUS[0]}", 0),
        pytest.param(
            "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING= NS analyze CKPT </dev/null",
            0,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_streams_that_are_closed_full_or_ascii(checkpoint, line, code):
    clean(shell(line.replace("CKPT", str(checkpoint))), code)


def test_names_of_files_that_are_no_text(checkpoint, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\x1b[31m.safetensors"
    Path(os.fsdecode(path)).write_bytes((checkpoint / "model-00001-of-00003.safetensors").read_bytes())
    line = f"LC_ALL=C PYTHONUTF8=0 NS analyze {tmp_path}/*.safetensors --html {tmp_path}/a.html"
    done = clean(shell(line), 0)
    assert "\x1b" not in done.stdout + done.stderr and (tmp_path / "a.html").exists()


def test_what_native_code_prints_is_no_data(checkpoint):
    """As MKL does on descriptor 1 where an argument is bad."""
    script = (
        "import os, sys\n"
        "from netspectra.faces.cli.streams import data_only\n"
        "data_only(); os.write(1, b'Intel MKL ERROR: Parameter 4 was incorrect on entry to DLASCL.'); print('{}')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "{}\n" and "MKL" in done.stderr


# ---- memory and time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [300, 900, 1300])
def test_a_process_that_may_not_have_much_memory(checkpoint, tmp_path, megabytes):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "netspectra", "analyze", str(checkpoint), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, preexec_fn=limit)
    clean(done, 4 if megabytes < 1024 else 0)
    assert done.returncode == 0 or "limited to" in done.stderr


def test_a_weight_that_cannot_fit_is_refused_before_any_work(tmp_path):
    path = sparse(tmp_path / "giant.safetensors", 200_000, 200_000)
    done = clean(process("analyze", path), 4)
    assert "needs up to" in done.stderr and "--exclude" in done.stderr and done.stderr.count("\n") == 1


def test_running_out_in_the_middle_names_the_weight(monkeypatch):
    from netspectra.verbs import analyze as verb

    for wrong in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")):
        monkeypatch.setattr(verb, "svdvals", lambda *a, wrong=wrong, **k: (_ for _ in ()).throw(wrong))
        with pytest.raises(ns.EnvironmentFailure, match=r"'w' \(3 x 3\): out of memory"):
            ns.analyze({"w": torch.eye(3)})


def test_a_library_that_gives_up_costs_one_row(monkeypatch):
    from netspectra.verbs import analyze as verb

    true = verb.svdvals

    def failing(A, **options):
        if A.shape[0] == 4:
            raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")
        return true(A, **options)

    monkeypatch.setattr(verb, "svdvals", failing)
    analysis = ns.analyze({"a": torch.eye(4), "b": torch.eye(3)})
    assert [r.name for r in analysis] == ["b"] and "failed to converge" in analysis.skipped[0].reason


def sparse(path, rows, columns):
    """A safetensors file of one matrix of zeros that takes no room on the disk."""
    header = f'{{"w":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[0,{4 * rows * columns}]}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 4 * rows * columns)
    return path


LISTED = """
import json, resource, sys, time
import netspectra as ns
from netspectra.sources import FORMATS
list(FORMATS)
found = []
for path in sys.argv[1:]:
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = ns.open(path)
    found.append([time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory,
                  source.weights[0].nbytes])
print(json.dumps(found))
"""


def test_listing_costs_the_header_whatever_the_size(tmp_path):
    import json

    paths = [sparse(tmp_path / f"{g}.safetensors", g * 16384, 16384) for g in (1, 10, 100)]
    done = subprocess.run([sys.executable, "-c", LISTED, *map(str, paths)], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert [size >> 30 for _, _, size in found] == [1, 10, 100]
    assert all(seconds < 1 for seconds, _, _ in found) and all(kilobytes < 2048 for _, kilobytes, _ in found[1:])


PEAK = """
import json, resource, sys, torch
import netspectra as ns
from netspectra.sources import FORMATS
analysis = ns.analyze(sys.argv[1], workers=int(sys.argv[2]))
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, [r.spectrum.route for r in analysis]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("graded", [False, True], ids=["Gram", "SVD"])
@pytest.mark.parametrize("rows,columns,count", [(2048, 2048, 2), (4096, 2048, 1), (1024, 1024, 12)])
def test_peak_memory(tmp_path, graded, rows, columns, count):
    """At most 2 x the largest tensor + 24 min(m, n)^2 bytes + 1 GB, however many tensors there are."""
    import json

    scale = torch.logspace(0, -9 if graded else 0, columns)
    write_single(tmp_path / "m.safetensors", {f"w{i}": torch.randn(rows, columns) * scale for i in range(count)})
    command = [sys.executable, "-c", PEAK, str(tmp_path / "m.safetensors"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    peak, routes = json.loads(done.stdout)
    assert all(("SVD" in route) is graded for route in routes)
    promised = 2 * 4 * rows * columns + 24 * min(rows, columns) ** 2 + (1 << 30)
    print(f"{peak / 1e6:.0f} MB of {promised / 1e6:.0f}")
    assert peak <= promised


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_process_that_is_deep_in_native_code(number, code, tmp_path):
    """The main thread is in one long native call; the handlers of Python wait for its end, the watch does not."""
    script = (
        "import os\n"
        "from netspectra.faces.cli.signals import watch\n"
        "watch(); import torch; A = torch.randn(3000, 3000); os.write(1, b'!'); torch.linalg.svd(A)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    while child.stdout.read(1) != b"!":
        pass
    time.sleep(0.1)
    child.send_signal(number)
    began = time.monotonic()
    _, said = child.communicate(timeout=60)
    assert child.returncode == code and b"Traceback" not in said and time.monotonic() - began < 20

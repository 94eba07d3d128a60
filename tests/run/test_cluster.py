"""Ray itself: several nodes on loopback, a private cluster behind the command line. ``make test-ray`` runs these."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run.cluster import LAYERS, checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
HERE = Path(__file__).parents[2]


ALONE = ["unshare", "--map-root-user", "--net"]  # starts a process in a network of its own
LOOPBACK = "from tests.run.cluster import loopback_up; loopback_up()"


@pytest.fixture
def environment():
    """Ray's workers import the code of this folder."""
    return os.environ | {"PYTHONPATH": f"{HERE / 'src'}{os.pathsep}{HERE}"}


def test_two_nodes_one_killed_one_late_a_driver_killed_and_every_verb(tmp_path, environment):
    probe = [*ALONE, sys.executable, "-c", LOOPBACK]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, env=environment).returncode:
        pytest.skip("no network of its own is permitted here (unshare --net, lo): several nodes were NOT tested")
    command = [*ALONE, sys.executable, "-m", "tests.run.cluster", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 1, "nothing of Ray's on standard output"
    told = json.loads(done.stdout)
    print(told)
    assert told["identical, a node killed"] and told["identical, resumed"]
    assert told["identical, verbs"] == dict.fromkeys(("compare", "calibrate", "compress", "quantize"), True)
    assert told["tasks"]["first"] and told["tasks"]["second"] and told["tasks"]["late"]
    assert 1 <= told["repeated"] <= 2, "what was with the lost node is done again, and nothing else"
    assert 0 < told["kept by the killed driver"] < LAYERS
    assert told["done again"] <= LAYERS + 2 - told["kept by the killed driver"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("private")).parent


def command(folder, *more):
    return [sys.executable, "-m", "netspectra", "analyze", "model.safetensors", "--engine", "ray", *more]


def test_a_private_cluster_exports_the_same_bytes(folder):
    """Also with a module of a library's name in the current folder, as a hostile checkpoint could bring along."""
    (folder / "torch.py").write_text("raise SystemExit('code of the checkpoint was run')")
    environment = os.environ | {"PYTHONSAFEPATH": "1", "TMPDIR": str(folder)}
    local = [part for part in command(folder, "--json", "-") if part not in ("--engine", "ray")]
    plain = subprocess.run(local, cwd=folder, capture_output=True, env=environment, check=True)
    found = subprocess.run(command(folder, "--json", "-"), cwd=folder, capture_output=True, env=environment, check=True)
    assert found.stdout == plain.stdout
    assert json.loads(found.stdout)["summary"]["weights"] == LAYERS + 1
    gone(lambda: not list(folder.glob("netspectra-ray-*")))


def test_an_interrupted_one_leaves_nothing_and_listens_on_loopback_only(folder):
    environment = os.environ | {"PYTHONSAFEPATH": "1", "TMPDIR": str(folder)}
    run = subprocess.Popen(
        command(folder, "--run", "job.run", "--thorough"), cwd=folder, env=environment, stderr=subprocess.PIPE
    )
    ours: set[int] = set()
    while len(ours) < 4 or not any("ray::" in name(pid) for pid in ours):
        assert run.poll() is None, run.stderr and run.stderr.read()
        time.sleep(0.2)
        ours |= descendants(run.pid)
    assert {address for pid in ours for address in listening(pid)} <= {"127.0.0.1"}
    folders = {found for pid in ours for found in re.findall(r"/[^ \0=]*?netspectra-ray-\w+", name(pid))}
    assert folders
    run.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert run.wait(timeout=60) == 130
    print("seconds until the driver left:", round(time.monotonic() - begun, 1))
    begun = time.monotonic()
    gone(lambda: not any(alive(pid) for pid in ours))  # Ray's agents look for their parent now and then
    print("seconds until all processes are gone:", round(time.monotonic() - begun, 1))
    gone(lambda: not any(Path(found).exists() for found in folders))


def gone(there, seconds=150):
    """Wait until it is so."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.2)


# ---- what the system tells of processes --------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> set[int]:
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                parents[int(entry)] = int(file.read().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown} - found
        found |= grown
    return found


def listening(pid: int) -> set[str]:
    """Addresses on which a process listens, of IPv4 and of IPv4 within IPv6."""
    sockets = set()
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            found = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{number}"))
            sockets |= {found[1]} if found else set()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    addresses = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in sockets:
                    last = bytes.fromhex(fields[1].split(":")[0][-8:])[::-1]
                    addresses.add(".".join(map(str, last)))
    return addresses

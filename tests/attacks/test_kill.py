"""Killed at any moment, the job resumes and exports the same bytes; of many writers one writes."""

import json
import subprocess
import sys

import pytest

import netspectra as ns
from netspectra.analysis import Analysis
from netspectra.runfile import RunFile
from tests.checkpoints import write_sharded

LOOP = """
import json, os, random, signal, sys, time
import netspectra as ns, netspectra.verbs.analyze
from netspectra.runfile import RunFile

checkpoint, folder, kills, longest = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
chance = random.Random(0)
counts, wrong, repeated, names = {"killed": 0, "finished": 0, "kept": 0, "unread": 0, "torn": 0}, 0, 0, 0
want = open(sys.argv[5]).read()
path = f"{folder}/job.run"

def kept():
    try:
        run = RunFile.read(path)
        try:
            return len(run.found())
        finally:
            run.close()
    except (ns.InputRefused, ns.EnvironmentFailure):
        return None  # killed before the first commit, or with a journal that the next writer rolls back

while counts["killed"] < kills:
    before = kept() or 0
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            done = ns.analyze(checkpoint, runfile=path, workers=1, progress=lambda w: time.sleep(longest / 40))
            done.save(f"{folder}/out.json")
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(9)
    time.sleep(chance.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    end = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(end):
        counts["killed"] += 1
        after = kept()
        counts["kept"] += after is None or after >= before
        counts["unread"] += after is None and before > 0
    else:
        if os.WEXITSTATUS(end):
            sys.exit("a rerun failed")
        counts["finished"] += 1
    if os.path.exists(f"{folder}/out.json"):
        counts["torn"] += open(f"{folder}/out.json").read() != want
        os.unlink(f"{folder}/out.json")
        for name in os.listdir(folder):
            if name.startswith("job.run"):
                os.unlink(f"{folder}/{name}")
last = ns.analyze(checkpoint, runfile=path, workers=1)
counts["same"] = last.to_json() == want
counts["left"] = sorted(os.listdir(folder))
print(json.dumps(counts))
"""


@pytest.mark.parametrize("kills", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    checkpoint = write_sharded(tmp_path / "ckpt")
    (tmp_path / "want").write_text(ns.analyze(checkpoint).to_json())
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", LOOP, checkpoint, tmp_path / "work", str(kills), "0.4", tmp_path / "want"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=290 if kills < 100 else 1500)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    print(counts)
    assert counts["same"] and counts["torn"] == 0 and counts["killed"] == counts["kept"] == kills
    assert counts["unread"] <= kills // 40
    assert [name for name in counts["left"] if not name.startswith(".netspectra-")] == ["job.run"]


STOPPED = """
import os, sqlite3, sys
run = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in ("PRAGMA journal_mode=DELETE", "PRAGMA cache_size=1", "BEGIN"):
    run.execute(statement)
run.executemany("INSERT INTO meta VALUES (?, ?)", ((f"key{k}", '"' + "x" * 3000 + '"') for k in range(500)))
os._exit(0)
"""


def test_a_reader_rolls_no_journal_back(tmp_path):
    """A journal can name other files for SQLite to remove, so only the job that writes the file may use it."""
    checkpoint, path = write_sharded(tmp_path / "ckpt"), tmp_path / "job.run"
    want = ns.analyze(checkpoint, runfile=path).to_json()
    subprocess.run([sys.executable, "-c", STOPPED, str(path)], check=True, timeout=60)
    before = path.read_bytes()
    with pytest.raises(ns.EnvironmentFailure, match="killed while writing"):
        RunFile.read(path)
    assert path.read_bytes() == before
    assert ns.analyze(checkpoint, runfile=path).to_json() == want
    RunFile.read(path).close()


RACE = """
import json, os, sys, time
import netspectra as ns, netspectra.verbs.analyze
checkpoint, path, writers = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = time.monotonic() + 0.3
children = []
for _ in range(writers):
    child = os.fork()
    if not child:
        time.sleep(max(0, start - time.monotonic()))
        try:
            ns.analyze(checkpoint, runfile=path, workers=1, progress=lambda w: time.sleep(0.05))
            os._exit(0)
        except ns.EnvironmentFailure as wrong:
            os._exit(4 if "another process is writing" in str(wrong) else 8)
    children.append(child)
print(json.dumps(sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)))
"""


def test_of_many_writers_one_writes(tmp_path):
    checkpoint = write_sharded(tmp_path / "ckpt")
    command = [sys.executable, "-c", RACE, str(checkpoint), str(tmp_path / "job.run"), "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    codes = json.loads(done.stdout)
    assert set(codes) <= {0, 4} and codes.count(0) >= 1, (codes, done.stderr[-1000:])
    assert ns.analyze(checkpoint, runfile=tmp_path / "job.run").to_json() == ns.analyze(checkpoint).to_json()


def test_a_reader_does_not_spoil_the_end(tmp_path):
    checkpoint = write_sharded(tmp_path / "ckpt")
    readers = []

    def look(weight):
        if not readers:
            readers.append(RunFile.read(tmp_path / "job.run"))
            readers[0].found()

    want = ns.analyze(checkpoint, runfile=tmp_path / "job.run", progress=look).to_json()
    assert Analysis.from_run(readers[0]).to_json() == want
    readers.pop().close()
    assert Analysis.from_run(RunFile.read(tmp_path / "job.run")).to_json() == want

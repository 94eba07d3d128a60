"""A fast share of ``python -m benchmarks fuzz``, and nothing happens while a file is read but reading."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from benchmarks.fuzz.run import ending
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.sources import FORMATS
from tests.attacks.mutate import spoil
from tests.attacks.seeds import SEEDS, plant

KINDS = [(name, kind) for name, kinds in SEEDS.items() for kind in kinds]


def test_every_format_has_a_seed():
    assert set(SEEDS) == set(FORMATS), "give a new reader a small honest file in tests/attacks/seeds.py"


@pytest.mark.parametrize("name,kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 2**63), min_size=4, max_size=4))
def test_spoilt_files_are_read_or_refused_in_one_line(tmp_path_factory, name, kind, numbers):
    honest = made(name, kind)
    folder = tmp_path_factory.getbasetemp() / f"spoilt-{name}-{kind}"
    folder.mkdir(exist_ok=True)
    path, target = plant(folder, name, honest)
    for number in numbers:
        target.write_bytes(spoil(honest[next(iter(honest))], name, Random(number)))
        signal.setitimer(signal.ITIMER_PROF, 4)  # processor seconds; two on a quiet machine
        try:
            ending(path, target)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


HONEST: dict = {}


def made(name, kind):
    if (name, kind) not in HONEST:
        HONEST[name, kind] = SEEDS[name][kind]()
    return HONEST[name, kind]


AUDITED = """
import json, sys
import netspectra as ns
from netspectra.sources import FORMATS
import torch

def read(path):
    source = ns.open(path)
    for ref in source.tensors:
        if not ref.problem:
            ref.load()
    return len(source.tensors), source.fingerprint

WATCHED = ("import", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "socket",
           "pickle.find_class", "marshal", "ctypes.dlopen", "os.remove", "os.mkdir", "os.rename", "os.chmod", "shutil",
           "os.truncate", "os.link", "os.symlink", "webbrowser", "urllib")
events, opened, on = [], [], False

def watch(event, args):
    if not on:
        return
    if event == "open":
        mode, flags = args[1], args[2] if len(args) > 2 else 0
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & 3):
            events.append(f"open for writing {args!r:.200}")
        else:
            opened.append(str(args[0]))
    elif event.startswith(WATCHED):
        events.append(f"{event} {args!r:.200}")

paths = json.loads(sys.argv[1])
for path in paths:  # modules that the first look loads
    read(path)
sys.addaudithook(watch)
found = {}
for path in paths:
    on = True
    counted = read(path)
    on = False
    found[path] = [counted[0], events[:], sorted(set(opened))]
    events.clear(), opened.clear()
print(json.dumps(found))
"""


def test_reading_imports_runs_writes_and_connects_to_nothing(tmp_path):
    paths = {}
    for name, kind in KINDS:
        folder = tmp_path / f"{name}-{kind}"
        folder.mkdir()
        path, _ = plant(folder, name, made(name, kind))
        (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
        (folder / "evil.py").write_text("raise SystemExit('it was run')")
        paths[str(path)] = folder
    command = [sys.executable, "-c", AUDITED, json.dumps(list(paths))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    for path, (count, events, opened) in json.loads(done.stdout).items():
        assert count and events == [], (path, events)
        outside = [file for file in opened if not Path(os.path.abspath(file)).is_relative_to(paths[path])]
        assert outside == [], (path, outside)

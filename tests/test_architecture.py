"""The law of dependency: what stands below never imports what stands above it."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "netspectra"
# Every room of the house and what it may import; a room not listed here is a failure: decide where it stands.
BASE = {"errors", "version", "registry"}
GROUND = BASE | {"linalg", "record"}
MIDDLE = GROUND | {"metrics", "weight", "run"} | {"runfile", "verdicts", "analysis", "figures", "checkpoint"}
MIDDLE |= {"aggregate", "depth", "findings", "history", "timeline", "written", "methods", "forms", "plan"}
ALLOWED = {
    "errors": set(),
    "version": set(),
    "registry": set(),
    "linalg": BASE | {"linalg"},
    "record": GROUND,
    "written": BASE,
    "metrics": GROUND | {"metrics"},
    "aggregate": GROUND,
    "depth": GROUND | {"metrics"},
    "verdicts": GROUND | {"depth"},
    "weight": GROUND | {"weight"},
    "checkpoint": GROUND | {"weight"},
    "findings": GROUND,
    "runfile": GROUND | {"findings", "runfile"},
    "history": GROUND | {"findings", "runfile"},
    "timeline": GROUND | {"findings", "runfile", "history", "written", "report"},
    "run": GROUND | {"weight", "run"},
    "figures": GROUND | {"metrics", "report"},
    "methods": GROUND | {"methods"},
    "forms": GROUND | {"methods", "forms"},
    "plan": BASE | {"plan", "written", "report"},
    "live": GROUND | {"weight", "composed", "checkpoint", "forms", "live"},
    "report": {"record", "report"},
    "analysis": GROUND
    | {"metrics", "aggregate", "depth", "verdicts", "findings", "runfile", "figures"}
    | {"written", "report"},
    "composed": GROUND | {"weight", "composed"},
    "views": GROUND | {"weight", "composed"},
    "verbs": MIDDLE | {"verbs", "live", "report"},
    "sources": GROUND | {"weight", "checkpoint", "views", "sources"},
    "faces.sinks": {"errors"},
    "faces.lightning": {"doors"},
    "faces.transformers": {"doors"},
    "faces.server": {"errors", "timeline", "report"},
    "faces.cli": MIDDLE | {"doors", "verbs", "sources", "live", "faces.cli", "faces.server"},
    "faces": set(),
    "doors": MIDDLE | {"verbs", "sources", "live"},
    "__init__": MIDDLE | {"doors", "verbs", "sources", "live"},
    "__main__": {"faces.cli"},
}
# torch.nn is for live models only: their source, the room that runs them, and the verbs that change them.
NN = ("sources/module.py", "live/", "forms/", "verbs/compress/", "verbs/train/", "verbs/watch/", "verbs/drift/",
      "verbs/interpret/", "verbs/distill/", "verbs/quantize/")  # fmt: skip


def room(parts: tuple[str, ...]) -> str:
    return ".".join(parts[:2]) if parts[0] == "faces" and len(parts) > 1 else parts[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FILES = sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_rooms_import_only_what_stands_below(path):
    parts = path.relative_to(SRC).with_suffix("").parts
    home = room(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])
    assert home in ALLOWED, f"a new room {home}: say in this test what it may import"
    for name in imports(path):
        if name.startswith("netspectra."):
            there = room(tuple(name.split(".")[1:]))
            exists = any((SRC / there.replace(".", "/")).with_suffix(end).exists() for end in ("", ".py"))
            if exists:
                assert there in ALLOWED[home], f"{home} must not import {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_nn_stays_with_live_models(path):
    text = path.relative_to(SRC).as_posix()
    if not text.startswith(NN):
        layers = {name for name in imports(path) if name == "torch.nn" or name.startswith("torch.nn.")}
        assert all(name.startswith("torch.nn.functional") for name in layers), layers


def test_no_room_without_a_name():
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")]


def test_formats_know_no_layers():
    for path in (SRC / "sources" / "formats").glob("*.py"):
        assert not any(name.startswith("netspectra.views") for name in imports(path)), path

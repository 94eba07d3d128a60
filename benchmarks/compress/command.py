"""The whole command as a user runs it: seconds, peak memory, bytes on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compress.texts import topics
from benchmarks.demo.run import minilm


def run(path: Path, texts: Sequence[str], home: Path, *options: str) -> dict[str, Any]:
    """``netspectra compress PATH`` on these texts, into ``home / "out"``, in a process of its own."""
    file, plan = home / "texts.txt", home / "plan.json"
    file.write_text("\n\n".join(texts), encoding="utf-8")
    command = [sys.executable, "-m", "netspectra", "compress", str(path), "--calibration", str(file),
               "-o", str(home / "out"), "--plan", str(plan), *options]  # fmt: skip
    began = time.perf_counter()
    with open(home / "log.txt", "w+", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        said = log.read()
    if child.returncode:
        raise SystemExit(f"netspectra compress {path.name} failed: {said[-2000:]}")
    found = json.loads(plan.read_text())
    selected = {when: found["totals"][f"selected_{when}"]["parameters"] for when in ("before", "after")}
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024),
        "bytes": sum(part.stat().st_size for part in (home / "out").glob("*.safetensors")),
        "predicted_bytes": found["totals"]["model_after"]["bytes"],
        "parameters": selected,
        "held_out": found["held_out"],
        "output": said.splitlines()[-16:],
    }


def measured(quick: bool = False) -> dict[str, Any]:
    """On MiniLM, half of the encoder kept."""
    import tempfile

    with tempfile.TemporaryDirectory() as home:
        return run(minilm(), topics()[: 32 if quick else 384], Path(home), "--keep", "0.5", "--include", "encoder.*")

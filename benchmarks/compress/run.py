"""Compression on real models: methods and forms in one run, allocation, digits, SmolLM2, the whole command."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compress import allocation, digits, minilm, smollm
from benchmarks.compress.texts import topics
from benchmarks.demo.run import minilm as folder
from benchmarks.results import keep, table

HERE = Path(__file__).parent


def command(count: int) -> dict[str, Any]:
    """Wall and CPU seconds, peak memory, and bytes on disk of the whole command on MiniLM."""
    import json

    with tempfile.TemporaryDirectory() as home:
        text, plan = Path(home) / "texts.txt", Path(home) / "plan.json"
        text.write_text("\n\n".join(topics()[:count]), encoding="utf-8")
        arguments = ["compress", str(folder()), "--keep", "0.5", "--include", "encoder.*", "--calibration", str(text)]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "netspectra", *arguments, "-o", f"{home}/out", "--plan", str(plan)],
            capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        assert done.returncode == 0, done.stderr
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(plan.read_text())
        size = sum(path.stat().st_size for path in Path(home, "out").glob("*.safetensors"))
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "bytes": size,
        "predicted_bytes": found["totals"]["model_after"]["bytes"],
        "output": done.stdout.splitlines()[-12:],
    }


def page(data: Mapping[str, Any]) -> str:
    """The findings as Markdown."""
    parts = []
    rows: Sequence[Mapping[str, Any]] = data["minilm"]["rows"]
    base = next(row for row in rows if row["name"] == "whitened, uniform")
    lines = [
        [
            row["name"],
            *(
                f"{row[f'cosine_{k}']:.4f} ({(1 - row[f'cosine_{k}']) / (1 - base[f'cosine_{k}']):.2f} x)"
                for k in ("in", "out")
            ),
        ]
        for row in rows
    ]
    rounding = data["minilm"]["rounding"]
    for name, found in rounding.items():
        share = found["bytes"] / found["bytes_before"]
        lines.append([f"for comparison, {name} rounding ({share:.0%} of bytes)", f"{found['cosine']:.4f}", ""])
    head = ["50 % of the encoder's parameters", "cosine, topics (its 1 - cosine in that of whitened)", "addresses"]
    parts.append("## MiniLM\n\n" + table(head, lines))
    speed, heal = data["minilm"]["speed"], data["minilm"]["healing"]
    parts.append(
        f"Speed at 50 %, batch 32 x 128: {speed['ratio']:.2f} x ({speed['low']:.2f} .. {speed['high']:.2f}). Planning, "
        f"refitting and healing: {heal['cpu_seconds']:.0f} CPU s."
    )
    embedding = data["minilm"]["embedding"]
    rows_e = [[name, f"{v['in']:.4f}", f"{v['out']:.4f}"] for name, v in embedding.items()]
    parts.append("## Word embedding alone, 50 %\n\n" + table(["", "topics", "addresses"], rows_e))
    rows_a = [
        [
            r["model"],
            r["keep"],
            f"{r['share']:.4f}",
            f"{r['allocated']:.4g}",
            f"{r.get('uniform', float('nan')):.4g}",
            r["kept"],
        ]
        for r in data["allocation"]
    ]
    head = ["model", "keep", "kept", "allocated", "uniform", "chosen"]
    parts.append("## Held-out loss, allocated against uniform\n\n" + table(head, rows_a))
    rows_d = [
        [r["form"], r["method"], r["keep"], f"{r['error']:.4f}", f"{r['accuracy']:.4f}"] for r in data["digits"]["rows"]
    ]
    parts.append("## Digits CNN\n\n" + table(["form", "method", "keep", "relative logit error", "accuracy"], rows_d))
    if "smollm" in data:
        s = data["smollm"]
        rows_s = [
            [name, f"{s[name]['topics']:.2f}", f"{s[name]['addresses']:.2f}"]
            for name in ("original", "whitened uniform", "compressed")
        ]
        parts.append(
            f"## SmolLM2-135M, {s['keep']:.0%} kept, perplexity\n\n" + table(["", "topics", "addresses"], rows_s)
        )
    c = data["command"]
    parts.append(
        f"## The whole command on MiniLM\n\n{c['seconds']:.1f} s wall, {c['cpu_seconds']:.1f} s CPU, peak "
        f"{c['peak_mb']:.0f} MB; {c['bytes']:,} bytes on disk, {c['predicted_bytes']:,} predicted "
        f"({c['bytes'] / c['predicted_bytes'] - 1:+.2%})."
    )
    return "\n\n".join(parts)


def main(quick: bool = False) -> None:
    data: dict[str, Any] = {"command": command(32 if quick else minilm.CALIBRATION)}
    data["digits"] = digits.measured(quick)
    data["allocation"] = allocation.measured(quick)
    data["minilm"] = minilm.measured(quick)
    if not quick:
        data["smollm"] = smollm.measured()
    text = page(data)
    if quick:
        print(text)
    else:
        keep(HERE, "Compression", data, text)

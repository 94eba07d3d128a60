"""The findings as Markdown: first every mark with its figure, then the tables behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.results import table

Data = Mapping[str, Any]


def page(data: Data, wanted: Sequence[str]) -> str:
    """Of the parts that were measured, and the names of those that were not."""
    sections = {
        "methods": _minilm,
        "digits": _digits,
        "allocation": _allocation,
        "smollm": _smollm,
        "command": _command,
    }
    marks = list(_marks(data))
    parts = [f"## Marks\n\n{sum(row[-1] == 'yes' for row in marks)} of {len(marks)} reached.\n\n"
             + table(["mark", "wanted", "found", "reached"], marks)]  # fmt: skip
    missing = [name for name in wanted if name not in data]
    if missing:
        parts.append(f"**Not measured here:** `python -m benchmarks.compress.run {' '.join(missing)}`")
    parts += [render(data) for name, render in sections.items() if name in data]
    return "\n\n".join(parts)


def _mark(name: str, wanted: str, found: str, reached: bool) -> list[str]:
    return [name, wanted, found, "yes" if reached else "**no**"]


def _marks(data: Data) -> Iterator[list[str]]:
    if "optimality" in data:
        found = data["optimality"]
        worst = max(found["worst"].values())
        reached = worst <= 1e-9 and not found["failures"]
        text = f"1 + {worst:.1e}, {len(found['failures'])} failures in {found['cases']} cases"
        yield _mark("error over the theoretical tail", "<= 1 + 1e-9, no exception", text, reached)
    if "methods" in data:
        yield from _minilm_marks(data)
    if "embedding" in data:
        cosine = data["embedding"]["frequency weighted"]["in"]
        yield _mark("word embedding alone, 50 %", "cosine >= 0.97", f"{cosine:.4f}", cosine >= 0.97)
    if "digits" in data:
        for keep in (0.5, 0.3):
            ratio = min(_errors(data, keep, plain=False)) / min(_errors(data, keep, plain=True))
            yield _mark(f"convolutions, {keep:.0%} kept: error over the best data-free form", "<= 0.10 x",
                        f"{ratio:.3f} x", ratio <= 0.10)  # fmt: skip
    if "allocation" in data:
        rows = data["allocation"]
        held = sum(row["held_out"][row["kept"]] <= row["held_out"].get("uniform", float("inf")) for row in rows)
        fresh = sum(row["test"]["chosen"] <= row["test"]["uniform"] for row in rows)
        yield _mark("allocation against uniform on held-out samples", f"never worse ({len(rows)} cases)",
                    f"{held} of {len(rows)} not worse", held == len(rows))  # fmt: skip
        yield _mark("the same on samples that chose nothing (no mark)", f"{len(rows)} of {len(rows)}",
                    f"{fresh} of {len(rows)} not worse", fresh == len(rows))  # fmt: skip
        off = max(row["keep"] - row["share"] for row in rows)
        over = any(row["share"] > row["keep"] * (1 + 1e-9) for row in rows)
        yield _mark("budgets", "hit within 1 %, never exceeded",
                    f"{'exceeded' if over else 'never exceeded'}, at most {off:.2%} left over",
                    not over and off <= 0.01)  # fmt: skip
    if "speed" in data:
        for name, found in data["speed"].items():
            yield _mark(f"speed at 50 %, batch 32 x 128: {name}", ">= 1.35 x", _ratio(found), found["ratio"] >= 1.35)
        slowest = min(found["ratio"] for found in data["speed"].values())
        yield _mark("never slower: the slower of these plans", ">= 0.98 x", f"{slowest:.2f} x", slowest >= 0.98)
    for name, label in (("command", "MiniLM"), ("smollm", "SmolLM2")):
        if name in data:
            found = data[name] if name == "command" else data[name]["command"]
            off = found["bytes"] / found["predicted_bytes"] - 1
            yield _mark(f"{label}: bytes on disk over predicted", "+- 0.5 %", f"{off:+.3%}", abs(off) <= 0.005)
    if "command" in data:
        seconds = data["command"]["seconds"]
        yield _mark("whole command on MiniLM", "<= 90 s",
                    f"{seconds:.0f} s wall, {data['command']['cpu_seconds']:.0f} s CPU", seconds <= 90)  # fmt: skip


def _ratio(found: Data) -> str:
    return f"{found['ratio']:.2f} x ({found['low']:.2f} .. {found['high']:.2f})"


def _rows(data: Data) -> list[Data]:
    return [row for part in ("methods", "spread", "healing") if part in data for row in data[part]["rows"]]


def _share(data: Data, row: Data, where: str) -> float:
    """1 - cosine over that of whitened uniform, the SVD-LLM style."""
    base = next(row for row in data["methods"]["rows"] if row["name"] == "whitened, uniform")
    return (1 - row[f"cosine_{where}"]) / (1 - base[f"cosine_{where}"])


def _minilm_marks(data: Data) -> Iterator[list[str]]:
    rows = {row["name"]: row for row in _rows(data)}
    wanted = [
        ("MiniLM 50 %, no training", 0.5, "all forms, as the command chooses"),
        ("MiniLM 50 %, factors only (pivoted storage)", 0.7, "two_sided, pivoted, global"),
    ]
    wanted += [(f"MiniLM 50 %, healed ({data['healing']['cpu_seconds']:.0f} CPU s)", 0.35, name)
               for name in rows if name.endswith("steps of healing")]  # fmt: skip
    for mark, limit, name in wanted:
        for where, label in (("in", "topics"), ("out", "addresses")):
            if name in rows:
                share = _share(data, rows[name], where)
                yield _mark(f"{mark}: 1 - cosine over whitened uniform, {label}", f"<= {limit:.2f} x",
                            f"{share:.2f} x", share <= limit)  # fmt: skip


def _minilm(data: Data) -> str:
    lines: list[Sequence[str]] = [
        [row["name"], *(f"{row[f'cosine_{k}']:.4f} ({_share(data, row, k):.2f} x)" for k in ("in", "out"))]
        for row in _rows(data)
    ]
    for name, found in data["methods"]["rounding"].items():
        share = found["bytes"] / found["bytes_before"]
        lines.append([f"for comparison, {name} rounding ({share:.0%} of bytes)", f"{found['cosine']:.4f} held out", ""])
    head = ["50 % of the encoder's parameters", "cosine, topics (1 - cosine over that of whitened)", "addresses"]
    parts = ["## MiniLM\n\n" + table(head, lines)]
    if "embedding" in data:
        rows = [[name, f"{v['in']:.4f}", f"{v['out']:.4f}"] for name, v in data["embedding"].items()]
        parts.append("## Word embedding alone, 50 %\n\n" + table(["", "topics", "addresses"], rows))
    return "\n\n".join(parts)


def _errors(data: Data, keep: float, *, plain: bool) -> list[float]:
    return [r["error"] for r in data["digits"]["rows"] if r["keep"] == keep and (r["method"] == "plain") == plain]


def _digits(data: Data) -> str:
    rows = [
        [r["form"], r["method"], f"{r['keep']:.0%}", f"{r['error']:.4f}", f"{r['accuracy']:.4f}"]
        for r in data["digits"]["rows"]
    ]
    about = f"Accuracy before: {data['digits']['accuracy']:.4f}.\n\n"
    return "## Digits CNN\n\n" + about + table(["form", "method", "kept", "relative logit error", "accuracy"], rows)


def _allocation(data: Data) -> str:
    rows = [
        [
            r["model"],
            f"{r['keep']:.0%}",
            f"{r['share']:.2%}",
            *(f"{r['held_out'][name]:.4g}" if name in r["held_out"] else "" for name in CANDIDATES),
            r["kept"],
            f"{r['test']['chosen']:.4g}",
            f"{r['test']['uniform']:.4g}",
        ]
        for r in data["allocation"]
    ]
    head = ["model", "budget", "kept", *CANDIDATES, "chosen", "test: chosen", "test: uniform"]
    return "## Held-out loss of what can be chosen, and loss on fresh samples\n\n" + table(head, rows)


CANDIDATES = ("allocated", "uniform", "uniform, filled")


def _smollm(data: Data) -> str:
    found = data["smollm"]
    rows = [
        [name, f"{found[name]['topics']:.2f}", f"{found[name]['addresses']:.2f}"]
        for name in ("original", "whitened uniform", "compressed")
    ]
    used = found["command"]
    return (
        f"## SmolLM2-135M from its GGUF, {found['keep']:.0%} kept, {found['samples']} samples: perplexity\n\n"
        + table(["", "topics", "addresses"], rows)
        + f"\n\nThe whole command: {used['seconds']:.0f} s wall, {used['cpu_seconds']:.0f} s CPU, peak "
        f"{used['peak_mb'] / 1024:.2f} GiB."
    )


def _command(data: Data) -> str:
    c = data["command"]
    return (
        f"## The whole command on MiniLM\n\n{c['seconds']:.0f} s wall, {c['cpu_seconds']:.0f} s CPU, peak "
        f"{c['peak_mb'] / 1024:.2f} GiB; {c['bytes']:,} bytes on disk, {c['predicted_bytes']:,} predicted."
    )

"""Thirteen architectures with random weights: compressed, saved, loaded, the same forward.

``python -m benchmarks.compress.coverage [--quick]`` writes coverage.json and coverage.md beside this file; ``--quick``
leaves out the exports and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import netspectra as ns
from benchmarks.compress.architectures import ARCHITECTURES, made
from benchmarks.results import table
from netspectra.faces.cli.environment import environment
from netspectra.forms.place import placed
from netspectra.live.batches import call, main_output

HERE = Path(__file__).parent
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}


def answer(model: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        return main_output(call(model, batch))


def covered(name: str, folder: Path, *, exports: bool) -> dict[str, Any]:
    """One architecture: compressed to one half, saved, loaded into a fresh model, compiled, exported."""
    architecture, model = ARCHITECTURES[name], made(name)
    batch = architecture.batch(99, 3)
    before = answer(model, batch)
    plan = ns.compress(model, keep=0.5, calibration=[architecture.batch(seed, 8) for seed in range(6)])
    plan.apply(model)
    after = answer(model, batch)
    saved = ns.save(model, folder / name)
    config = (folder / name / "config.json").exists()
    back = ns.load(folder / name) if config else ns.load(folder / name, made(name, seed=7))
    left = {d.modules[0]: d.reason for d in plan if d.form == "dense"}
    row: dict[str, Any] = {
        "forms": dict(Counter(d.form for d in plan if d.form != "dense")),
        "replaced": len(placed(model)),
        "left": left,
        "parameters": [plan.totals["model_before"].parameters, plan.totals["model_after"].parameters],
        "bytes": {"predicted": plan.totals["model_after"].bytes, "parameters": held(model), "files": saved.bytes},
        "change": float((after - before).norm() / before.norm()),
        "same": bool(torch.equal(answer(back, batch), after)),
    }
    if exports:
        row["compiled"] = works(
            lambda: close(answer(torch.compile(model, fullgraph=True, backend="aot_eager"), batch), after)
        )
        row["pt2"] = works(lambda: pt2(model, architecture.batch(0, 2), batch, after, folder / f"{name}.pt2"))
        row["onnx"] = works(lambda: onnx(model, architecture.batch(0, 2), batch, after, folder / f"{name}.onnx"))
    return row


def held(model: nn.Module) -> int:
    """Bytes of all parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def works(attempt: Any) -> str:
    """An empty text, or why it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attempt()
    except Exception as wrong:  # noqa: BLE001 - a benchmark tells what failed and goes on
        return f"{type(wrong).__name__}: {(str(wrong).strip().splitlines() or [''])[0][:160]}"
    return ""


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, **CLOSE)


def pt2(model: nn.Module, example: Any, batch: Any, wanted: Tensor, to: Path) -> None:
    ns.save(model, to, example=example)
    close(call(torch.export.load(to).module(), batch), wanted)


def onnx(model: nn.Module, example: Any, batch: Any, wanted: Tensor, to: Path) -> None:
    import onnxruntime

    ns.save(model, to, example=example)
    inputs = batch if isinstance(batch, Mapping) else {"input_0": batch}
    (found,) = onnxruntime.InferenceSession(to).run(None, {key: value.numpy() for key, value in inputs.items()})
    close(torch.from_numpy(found), wanted)


# ---- the page ---------------------------------------------------------------------------------------------------


def mark(problem: str) -> str:
    return problem or "yes"


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    same = sum(row["same"] for row in rows.values())
    head = ("architecture", "forms", "replaced", "left alone", "parameters", "output changed by", "same after loading",
            "compiles", ".pt2", ".onnx")  # fmt: skip
    body = [
        (
            name,
            ", ".join(f"{count} {form}" for form, count in row["forms"].items()),
            row["replaced"],
            len(row["left"]),
            f"{row['parameters'][0]:,} to {row['parameters'][1]:,}",
            f"{row['change']:.2g}",
            "yes" if row["same"] else "NO",
            *(mark(row[key]) if key in row else "-" for key in ("compiled", "pt2", "onnx")),
        )
        for name, row in rows.items()
    ]
    text = [
        "Random weights, half the parameters of what can be decided on kept, 6 batches of 8 samples; a random network",
        "has no structure to find, so the change of its output says nothing of trained ones.",
        f"\n**{same} of {len(rows)} give the same forward after saving and loading, bit for bit.**\n",
        table(head, body),
        "\nLeft alone, and why:\n",
        *(f"- {name}: {reason}" for name, reason in reasons(rows)),
    ]
    return "\n".join(text)


def reasons(rows: Mapping[str, Mapping[str, Any]]) -> Sequence[tuple[str, str]]:
    """Each reason once an architecture, with how many layers it is of."""
    found = []
    for name, row in rows.items():
        counted = Counter(reason for reason in row["left"].values())
        found.append((name, "; ".join(f"{reason} ({count})" for reason, count in counted.items()) or "nothing"))
    return found


def main(quick: bool = False) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        rows = {name: covered(name, folder, exports=not quick) for name in ARCHITECTURES}
    text = page(rows)
    print(text)
    if quick:
        return
    found = environment()
    (HERE / "coverage.json").write_text(json.dumps({"environment": found, "architectures": rows}, indent=1) + "\n")
    machine = ", ".join(f"{key} {value}" for key, value in found.items())
    title = "# Coverage: save, load, export\n\n`python -m benchmarks.compress.coverage`"
    (HERE / "coverage.md").write_text(f"{title}\n\n{text}\n\nMeasured on: {machine}.\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    main(quick=parser.parse_args().quick)

"""Is the lineage right? Pairs of trained networks whose history is known, and the verdict on each."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import netspectra as ns
from benchmarks.compare.pairs import pairs
from benchmarks.results import keep, table
from netspectra.verbs.compare.lineage import LINEAGES, THRESHOLDS

HERE = Path(__file__).parent
FIXED_ON = range(100, 105)  # seeds on which thresholds were set
REPORTED = range(10, 15)
STEPS = 300

TEXT = """
An MLP and a CNN (with batch norm) trained on scikit-learn's digits, and what was done to each, over {seeds} seeds:
{count} pairs, {right} verdicts right. Thresholds were fixed on seeds 100 to 104
(`python -m benchmarks.compare.run fix`), these are others. New data are the same images upside down.
Thresholds were not fixed on the pairs called hard, where two things happened or rounding hides what did.

{kinds}

Confusion (rows: truth, columns: verdict):

{confusion}

What was read wrongly (twelve at most):

{wrong}
"""


def judged(seeds: range, steps: int) -> list[dict[str, Any]]:
    rows = []
    for seed in seeds:
        for network, what, truth, before, after in pairs(seed, steps):
            started = time.process_time()
            found = ns.compare(before, after)
            changed = [d for d in found if d.changed]
            rows.append(
                {
                    "seed": seed,
                    "network": network,
                    "what": what,
                    "truth": truth,
                    "verdict": found.lineage,
                    "message": found.verdict.message,
                    "cosine": found.verdict.evidence["cosine"],
                    "whiteness": max((d.whiteness or 0.0 for d in changed), default=None),
                    "rounding": max((d.rounding or 0.0 for d in found), default=None),
                    "ranks": [[d.rank, min(d.shape), round(d.rest, 2)] for d in changed],
                    "seconds": round(time.process_time() - started, 3),
                }
            )
    return rows


def main(quick: bool = False) -> None:
    seeds = range(1) if quick else REPORTED
    rows = judged(seeds, 60 if quick else STEPS)
    right = sum(row["truth"] == row["verdict"] for row in rows)
    kinds = list(dict.fromkeys((row["what"], row["truth"]) for row in rows))
    lines = []
    for what, truth in kinds:
        cells = []
        for network in ("MLP", "CNN"):
            mine = [row for row in rows if row["what"] == what and row["network"] == network]
            cells.append(f"{sum(row['verdict'] == truth for row in mine)} / {len(mine)}")
        lines.append([what, truth, *cells])
    counts = Counter((row["truth"], row["verdict"]) for row in rows)
    confusion = [[truth, *(counts[truth, verdict] or "" for verdict in LINEAGES)] for truth in LINEAGES]
    wrong = [
        f"- {row['network']}, seed {row['seed']}, {row['what']} ({row['truth']}): {row['verdict']}: {row['message']}"
        for row in rows
        if row["truth"] != row["verdict"]
    ][:12]
    page = TEXT.format(
        seeds=len(seeds),
        count=len(rows),
        right=right,
        kinds=table(["what", "truth", "MLP right", "CNN right"], lines),
        confusion=table(["", *LINEAGES], confusion),
        wrong="\n".join(wrong) or "nothing",
    )
    if quick:
        print(page)
    else:
        keep(HERE, "Lineage of checkpoints", {"thresholds": THRESHOLDS, "pairs": rows}, page)


if __name__ == "__main__":
    if sys.argv[1:] == ["fix"]:
        for found in judged(FIXED_ON, STEPS):
            if not found["what"].startswith("hard") and (found["truth"] != found["verdict"]):
                print(json.dumps(found))
    else:
        main("--quick" in sys.argv)

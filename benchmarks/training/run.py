"""Stable training: what predicts that a network trains, and what makes it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import keep
from benchmarks.training import leading, signals, starts
from netspectra.linalg.threads import threads

HERE = Path(__file__).parent
PARTS = {"signals": signals, "starts": starts, "leading": leading}


def main(quick: bool = False) -> None:
    with threads(1):
        found = {name: part.study(quick) for name, part in PARTS.items()}
    text = "\n\n".join(part.page(found[name]) for name, part in PARTS.items())
    if quick:
        print(text)
    else:
        keep(HERE, "Stable training", found, text)


if __name__ == "__main__":
    main()

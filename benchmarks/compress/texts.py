"""The pinned texts: samples of pydoc_data.topics to calibrate and test on, samples of state_union out of domain."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

WORDS = 20  # samples shorter than this are dropped: headings, signatures
SHARED = Path(os.environ.get("NETSPECTRA_SHARED", Path(__file__).parents[3] / "shared"))
DATA = SHARED / "data" / "state_union"


def paragraphs(text: str) -> list[str]:
    """Paragraphs of at least `WORDS` words, white space collapsed."""
    found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return [part for part in found if len(part.split()) >= WORDS]


def topics() -> list[str]:
    """Paragraphs of the language reference that comes with every CPython, in a seeded order."""
    from pydoc_data.topics import topics as pages

    found = list(dict.fromkeys(p for name in sorted(pages) for p in paragraphs(pages[name])))
    random.Random(0).shuffle(found)
    return found


def addresses(folder: Path = DATA) -> list[str]:
    """Paragraphs of the State of the Union addresses, in a seeded order."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is absent: set NETSPECTRA_SHARED to the folder that holds data/state_union")
    found = list(dict.fromkeys(p for path in sorted(folder.glob("*.txt")) for p in _lines(path)))
    random.Random(0).shuffle(found)
    return found


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    found = paragraphs(text)
    return found if len(found) > 3 else paragraphs(text.replace("\n", "\n\n"))

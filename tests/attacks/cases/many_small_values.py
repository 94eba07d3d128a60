"""Thirty megabytes of empty lists, which as objects would take three gigabytes."""

import struct
import sys
from pathlib import Path

EXPECT = "items, allowed are"


def write(folder: Path) -> Path:
    header = b'{"w":[' + b"[]," * 10_000_000 + b"[]]}"
    path = folder / "many_small_values.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(0))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

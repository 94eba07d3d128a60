"""A hundred thousand opening brackets."""

import struct
import sys
from pathlib import Path

EXPECT = "nested too deeply"


def write(folder: Path) -> Path:
    header = b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path = folder / "deep_json.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(0))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""A shape whose product does not fit in 64 bits and wraps round to a small number."""

import json
import struct
import sys
from pathlib import Path

EXPECT = "has more than"


def write(folder: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 16]}}).encode()
    path = folder / "shape_overflow.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""A name that makes patterns of names run in squares of its length."""

import json
import struct
import sys
from pathlib import Path

EXPECT = ""


def write(folder: Path) -> Path:
    header = json.dumps({"weight_" * 9000 + "!": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    path = folder / "long_name_for_patterns.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

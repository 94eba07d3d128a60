"""Two tensors over the same bytes."""

import json
import struct
import sys
from pathlib import Path

EXPECT = "overlap or hole"


def write(folder: Path) -> Path:
    header = json.dumps({n: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} for n in "ab"}).encode()
    path = folder / "overlapping_tensors.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

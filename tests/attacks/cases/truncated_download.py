"""A file that ends in the middle of its tensors."""

import json
import struct
import sys
from pathlib import Path

EXPECT = "is truncated"


def write(folder: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 16384]}}).encode()
    path = folder / "truncated_download.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(100))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

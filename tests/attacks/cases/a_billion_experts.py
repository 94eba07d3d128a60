"""A sparse file of two gigabytes that is one tensor of a billion experts: each would be a weight."""

import json
import os
import struct
import sys
from pathlib import Path

EXPECT = ""


def write(folder: Path) -> Path:
    header = json.dumps(
        {"experts.w": {"dtype": "F8_E4M3", "shape": [2**30, 2, 1], "data_offsets": [0, 2**31]}}
    ).encode()
    path = folder / "experts.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 2**31)
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""One name for two tensors: readers that keep the first and readers that keep the last disagree."""

import struct
import sys
from pathlib import Path

EXPECT = "the key stands twice"


def write(folder: Path) -> Path:
    header = (
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    )
    path = folder / "key_twice.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

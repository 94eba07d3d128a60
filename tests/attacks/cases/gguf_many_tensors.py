"""A count of a quintillion tensors."""

import struct
import sys
from pathlib import Path

EXPECT = "claims"


def write(folder: Path) -> Path:
    path = folder / "many.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 10**18, 0) + bytes(64))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

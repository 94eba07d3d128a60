"""An array of 2^62 numbers in 60 bytes, on which readers that believe it hang."""

import struct
import sys
from pathlib import Path

EXPECT = "ends at byte"


def write(folder: Path) -> Path:
    text = struct.pack("<Q", 1) + b"k"
    path = folder / "array.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text + struct.pack("<IIQ", 9, 4, 1 << 62) + bytes(16))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""A header that claims 2^63 bytes: nothing of that size is allocated."""

import struct
import sys
from pathlib import Path

EXPECT = "claims a header of"


def write(folder: Path) -> Path:
    header = b"{}"
    path = folder / "header_of_exabytes.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 63) + header + bytes(0))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

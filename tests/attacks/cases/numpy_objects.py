"""An array of Python objects, which is a pickle."""

import struct
import sys
from pathlib import Path

EXPECT = "holds Python objects"


def write(folder: Path) -> Path:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }\n"
    path = folder / "objects.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"cos\nsystem\n(S'id'\ntR.")
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""An archive of a hundred kilobytes that holds 128 megabytes of zeros."""

import struct
import sys
import zipfile
from pathlib import Path

EXPECT = "decompression bomb"


def write(folder: Path) -> Path:
    path = folder / "bomb.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (33554432, 1), }\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("w.npy", "w", force_zip64=True) as member:
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(128):
            member.write(bytes(1 << 20))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

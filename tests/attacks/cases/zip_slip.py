"""An archive whose member is called ../../evil.npy; names are only keys, nothing is unpacked."""

import struct
import sys
import zipfile
from pathlib import Path

EXPECT = ""


def write(folder: Path) -> Path:
    path = folder / "slip.npz"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../evil.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

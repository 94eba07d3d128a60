"""Sixty nested lists of ten references each: ten to the sixty elements when they are walked."""

import sys
import zipfile
from pathlib import Path

EXPECT = "holds no tensors"


def write(folder: Path) -> Path:
    laughs = b"]q\x00" + b"".join(b"](h\x00" + b"h\x00" * 9 + b"eq\x00" for _ in range(60))
    path = folder / "bomb.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + laughs + b".")
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""A zip archive of nothing."""

import sys
import zipfile
from pathlib import Path

EXPECT = ""


def write(folder: Path) -> Path:
    path = folder / "empty.pt"
    zipfile.ZipFile(path, "w").close()
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

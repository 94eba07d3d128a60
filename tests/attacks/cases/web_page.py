"""The error page that a download saved."""

import sys
from pathlib import Path

EXPECT = "is a web page"


def write(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""A pipe that nobody writes to: opening it would wait for ever."""

import os
import sys
from pathlib import Path

EXPECT = "not a regular file"


def write(folder: Path) -> Path:
    path = folder / "model.safetensors"
    os.mkfifo(path)
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

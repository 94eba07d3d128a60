"""What git leaves where git-lfs is not installed."""

import sys
from pathlib import Path

EXPECT = "git lfs pull"


def write(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

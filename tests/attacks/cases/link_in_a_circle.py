"""A folder whose weights are a link to themselves."""

import sys
from pathlib import Path

EXPECT = ""


def write(folder: Path) -> Path:
    (folder / "circle").mkdir()
    (folder / "circle" / "model.safetensors").symlink_to("model.safetensors")
    return folder / "circle"


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

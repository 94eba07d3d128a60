"""A folder whose weights are a link to a file elsewhere."""

import sys
from pathlib import Path

EXPECT = "is a link out of the folder"


def write(folder: Path) -> Path:
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "model.safetensors").symlink_to("/etc/hostname")
    return folder / "checkpoint"


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""An index whose shard has a name that no file can have."""

import json
import sys
from pathlib import Path

EXPECT = "no file can be called"


def write(folder: Path) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": "\ud800" * 3}}))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

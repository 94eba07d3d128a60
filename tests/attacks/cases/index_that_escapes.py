"""An index whose shard is a file outside the folder."""

import json
import sys
from pathlib import Path

EXPECT = "allowed are plain file names"


def write(folder: Path) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": "../../etc/passwd"}}))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

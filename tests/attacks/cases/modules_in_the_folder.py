"""A checkpoint beside files called torch.py and json.py, and a config that names remote code."""

import json
import struct
import sys
from pathlib import Path

EXPECT = ""


def write(folder: Path) -> Path:
    folder = folder / "checkpoint"
    folder.mkdir()
    for name in ("torch", "numpy", "json", "typer", "hashlib", "safetensors", "modeling_evil"):
        (folder / f"{name}.py").write_text(f"open({str(folder.parent / 'PWNED')!r}, 'w')\n")
    auto = {"AutoModel": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps({"auto_map": auto, "trust_remote_code": True}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return folder


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""A checkpoint of Lightning whose hyper-parameters are a call; the weights beside it are read, the call is not made."""

import os
import sys
from pathlib import Path

EXPECT = ""


def write(folder: Path) -> Path:
    import torch

    class Call:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'PWNED'}",)

    path = folder / "last.ckpt"
    torch.save({"state_dict": {"w": torch.eye(3)}, "hyper_parameters": Call()}, path)
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

"""A pickle that calls os.system when it is loaded; it is read as data and never run."""

import sys
from pathlib import Path

EXPECT = "none of torch.save"


def write(folder: Path) -> Path:
    marker = folder / "PWNED"
    path = folder / "model.pt"
    path.write_bytes(b"\x80\x02cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

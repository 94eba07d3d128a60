"""Two hundred thousand names of which the last two are equal: looking for them pair by pair takes minutes."""

import struct
import sys
from pathlib import Path

EXPECT = "the key stands twice"


def write(folder: Path) -> Path:
    header = ("{" + "".join(f'"{i}":1,' for i in range(200_000)) + '"199999":1}').encode()
    path = folder / "duplicates_at_the_end.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(0))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))

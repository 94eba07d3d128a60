"""Put the oracles beside the tests on the path, and keep the BLAS libraries to one thread."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    from netspectra.linalg.threads import threads

    with threads(1):
        yield

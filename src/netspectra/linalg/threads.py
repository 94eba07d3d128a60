"""How many threads the BLAS libraries behind torch, numpy and scipy may use, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import scipy.linalg  # noqa: F401  (a library can only be told once it is loaded)
import torch
from threadpoolctl import ThreadpoolController

__all__ = ["threads"]


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Give every BLAS library n threads inside the block, and what they had before after it.

    The setting of OpenBLAS (numpy, scipy) counts for the whole process, so blocks of several threads must not overlap:
    a pool of workers is started *inside* one block of the main thread. torch's counts for the calling thread and for
    threads that start afterwards.

    >>> import torch
    >>> with threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    with ThreadpoolController().limit(limits=n, user_api="blas"):
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)

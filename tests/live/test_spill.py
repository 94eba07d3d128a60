"""Tensors that wait in a file, asked for by several threads at once."""

from concurrent.futures import ThreadPoolExecutor

import torch

from netspectra.live.spill import Spill


def test_threads_get_their_own_tensor():
    spill = Spill()
    waiting = [spill.put(torch.full((2000,), float(i))) for i in range(20)]
    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(lambda k: waiting[k % 20](), range(800))):
            assert len(found) == 2000 and bool((found == i % 20).all())

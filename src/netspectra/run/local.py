"""In this process: a few threads with one BLAS thread each, under a budget of bytes.

Two workers with one BLAS thread each beat two BLAS threads by a fifth to a third, and one thread a weight makes the
result the same for any number of workers. The libraries release the interpreter lock while they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from netspectra.linalg.threads import threads
from netspectra.run.cost import UNKNOWN, cores, memory, must_fit, needed, working_set
from netspectra.run.job import Job
from netspectra.weight import Weight

W = TypeVar("W", bound=Weight | Job)
R = TypeVar("R")

__all__ = ["LocalRun", "alone", "serial"]

SLACK = 640 << 20  # of the gigabyte that the promise on memory leaves, what the libraries do not take
MANY = 4  # workers beyond which a fixed budget would leave them idle
ALONE = 1 << 30  # bytes of work beside the tensor from which a weight runs alone, with every processor to itself


def serial(function: Callable[[W], R], weights: Iterable[W]) -> Iterator[tuple[W, R]]:
    """One after another in this thread: the reference that every other engine must agree with."""
    with threads(1):
        for weight in weights:
            yield weight, _widely(function, weight) if alone(weight) else function(weight)


@dataclass(frozen=True)
class LocalRun:
    """Threads in this process: many weights side by side with one BLAS thread each, giants one by one with all.

    Which of the two depends on the weight's shape alone, so that the number of workers does not change a bit.

    Attributes:
        workers: how many; by default as many as there are processors.
        budget: bytes that may be in work at a time; by default twice the largest tensor, the square of its short side
            at 24 bytes an entry, and 600 MB. More than four workers may fill half of the memory there is.
    """

    workers: int = 0
    budget: int = 0

    def __call__(self, function: Callable[[W], R], weights: Iterable[W]) -> Iterator[tuple[W, R]]:
        """Apply ``function`` to every weight; large ones wait until their bytes fit beside those in work."""
        queue = list(weights)
        must_fit(queue)
        workers = self.workers or cores()
        budget = self.budget or _budget(queue, workers)
        with threads(1):
            pool = ThreadPoolExecutor(workers, "netspectra", _one_torch_thread)
            try:
                yield from _drive(pool, function, [w for w in queue if not alone(w)], budget, workers)
                for giant in filter(alone, queue):
                    yield giant, _widely(function, giant)  # in this thread: OpenBLAS does not widen for another
            finally:  # an interrupted run does not wait for the weights in work
                pool.shutdown(wait=False, cancel_futures=True)


def _budget(queue: Sequence[Weight | Job], workers: int) -> int:
    """What the promise on memory allows; where many processors would stand idle under it, half of what there is."""
    promised = max(map(needed, queue), default=0) + SLACK
    there = memory()
    return max(promised, there // 2) if workers > MANY and there < UNKNOWN else promised


def alone(weight: Weight | Job) -> bool:
    """Whether it runs with nothing beside it and several threads of linear algebra: a weight that is large, any job."""
    return isinstance(weight, Job) or working_set(weight) - weight.nbytes > ALONE


def _widely(function: Callable[[W], R], weight: W) -> R:
    """Run with every processor; only while nothing else runs, since the setting is the whole process's."""
    with threads(cores()):
        return function(weight)


def _one_torch_thread() -> None:
    """OpenMP's thread count belongs to the calling thread: set it in each worker."""
    import torch

    torch.set_num_threads(1)


def _drive(
    pool: ThreadPoolExecutor, function: Callable[[W], R], queue: list[W], budget: int, workers: int
) -> Iterator[tuple[W, R]]:
    running: dict[Future[R], W] = {}
    used, place = 0, 0
    while place < len(queue) or running:
        while place < len(queue) and len(running) < workers:
            need = needed(queue[place])
            if running and used + need > budget:
                break
            running[pool.submit(function, queue[place])] = queue[place]
            used, place = used + need, place + 1
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            weight = running.pop(future)
            used -= needed(weight)
            yield weight, future.result()

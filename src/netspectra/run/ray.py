"""On a Ray cluster, or on a private one of this machine: a task a weight, in processes instead of threads.

Only names, paths and slices travel to the workers, only findings travel back, and the driver alone keeps them.
"""

from __future__ import annotations

import importlib
import os
import pickle
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.linalg.threads import threads
from netspectra.run.cost import cores, described, flops, needed
from netspectra.run.job import Job
from netspectra.run.local import alone
from netspectra.run.parcel import pack, unpack
from netspectra.weight import Weight

W = TypeVar("W", bound=Weight | Job)
R = TypeVar("R")

__all__ = ["RayRun"]

WORKER = 512 << 20  # bytes of a worker process beside its weight; 300 MB were measured with torch and scipy loaded
STEP = 128 << 20  # memory is asked for in such steps: tasks of one demand share their workers' leases
STORE = 100 << 20  # bytes of the private cluster's object store: findings are small
AHEAD = 2  # weights handed out for every processor, so that none waits for the driver
LOOK = 1.0  # seconds between two looks at how large the cluster is
PATIENCE = 300.0  # seconds that a node of the private cluster may take to start; Ray gives up after 30
PACKAGES = ("netspectra", "torch", "numpy", "scipy")  # what decides on the numbers, must be the same everywhere
SOCKETS = 30  # letters of a folder's name beyond which Ray's sockets in it would get too long a name
TOLD = 300  # letters of a message of Ray's that are shown
# Of a cluster of this machine: loopback only, no lower priority than threads of this process would have.
PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
# No usage statistics; a task that runs out of memory is not tried for ever; no warning of a change to come.
ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": "3", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class RayRun:
    """One Ray task for each weight, with one BLAS thread; giants take a whole node and as many threads as the driver.

    A task says how many bytes it needs, so that nodes are not filled beyond their memory. The largest weights go
    first. A weight whose worker or node is lost is done again elsewhere; an exception of the function ends the run.
    Nodes that join during the run are used. Results do not depend on the engine: exports are the same bytes.

    Attributes:
        address: of a running cluster (``auto``, ``host:port``). By default that in ``RAY_ADDRESS``, else a private
            cluster of this machine, on the loopback interface behind a token, which ends with the run.
        workers: weights in work at a time; by default as many as the cluster has processors.
        gpus: share of a GPU that each weight takes, such as 0.25; for ``device="cuda"``.
        retries: how often a weight is done again whose worker died.
    """

    address: str | None = None
    workers: int = 0
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.workers < 0 or self.retries < 0 or self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise InputRefused(f"{self}: numbers from 0 on; GPUs a share up to 1, or a whole number")
        if (self.address or "").startswith("ray://"):
            raise InputRefused(
                f"{self.address}: Ray's client is not supported; run netspectra on a machine of the cluster, with "
                "--address auto, or hand it in with 'ray job submit'"
            )

    @property
    def private(self) -> bool:
        """Whether it starts a cluster of its own on this machine."""
        return self._where == "local"

    @property
    def _where(self) -> str:
        return self.address or os.environ.get("RAY_ADDRESS") or "local"

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Stay with one cluster over several maps: a private one starts and ends once."""
        with _connected(self):
            yield

    def __call__(self, function: Callable[[W], R], weights: Iterable[W]) -> Iterator[tuple[W, R]]:
        """Apply ``function`` to every weight; results come as they are ready.

        Raises:
            InputRefused: Ray is not installed, or the weights are in this process's memory.
            EnvironmentFailure: no cluster answers, no node is large enough, a machine lacks the file or has other
                versions, or a weight took its worker down ``retries + 1`` times.
        """
        queue = sorted(weights, key=flops, reverse=True)
        if not queue:
            return
        pack(queue[0])  # refuse what cannot travel before a cluster is started
        with _connected(self) as ray:
            yield from _drive(ray, self, function, queue)


def _drive(ray: Any, run: RayRun, function: Callable[[W], R], queue: list[W]) -> Iterator[tuple[W, R]]:
    room, widest = _room(ray, run, queue)
    handed = ray.put(function)
    task = ray.remote(max_retries=run.retries, retry_exceptions=False, num_gpus=run.gpus)(_carry_out)
    wide = cores()
    pending: dict[Any, W] = {}
    place, looked = 0, time.monotonic()
    try:
        while place < len(queue) or pending:
            while place < len(queue) and len(pending) < room:
                weight = queue[place]
                n = wide if alone(weight) else 1
                demand = {"num_cpus": min(n, widest), "memory": demanded(weight), "name": weight.name}
                pending[task.options(**demand).remote(handed, pack(weight), n, _versions())] = weight
                place += 1
            ready, rest = ray.wait(list(pending), num_returns=1, timeout=LOOK)
            if rest:
                ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
            for ref in ready:
                weight = pending.pop(ref)
                yield weight, _result(ray, run, ref, weight)
            if time.monotonic() - looked > LOOK:
                room, looked = _handed_out(run, ray.cluster_resources()), time.monotonic()
    finally:
        for ref in pending:
            ray.cancel(ref, force=True)


def demanded(weight: Weight | Job) -> int:
    """Bytes that a weight's task asks the cluster for: its work, what lies beside it, and the process."""
    need = needed(weight) + WORKER
    return -(-need // STEP) * STEP


def _handed_out(run: RayRun, there: Mapping[str, float]) -> int:
    """How many weights are with the cluster at a time: bounded, and growing with it."""
    return run.workers or max(AHEAD * int(there.get("CPU", 0)), AHEAD)


def _room(ray: Any, run: RayRun, queue: Sequence[Weight | Job]) -> tuple[int, int]:
    """Weights to hand out, and processors of the widest node; refuse what no node can hold."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max((int(node.get("memory", 0)) for node in nodes), default=0)
    for weight in queue:
        if demanded(weight) > largest:
            raise EnvironmentFailure(
                f"{described(weight)} needs up to {demanded(weight) / 1e9:.1f} GB of memory, the largest node "
                f"offers {largest / 1e9:.1f}. --exclude it, or add a larger node first"
            )
    if run.gpus and not any(node.get("GPU", 0) >= min(run.gpus, 1) for node in nodes):
        raise EnvironmentFailure("no node of the cluster has a GPU. Leave --device out, or add one")
    widest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    return _handed_out(run, ray.cluster_resources()), max(widest, 1)


def _result(ray: Any, run: RayRun, ref: Any, weight: Weight | Job) -> Any:
    try:
        return pickle.loads(ray.get(ref))
    except ray.exceptions.RayTaskError as wrong:
        raise wrong.cause or wrong from wrong
    except ray.exceptions.RayError as wrong:
        why = str(wrong).strip().splitlines()[0][:200]
        raise EnvironmentFailure(
            f"{weight.name!r}: its worker was lost {run.retries + 1} times, of memory perhaps ({why}). "
            "--exclude it, or take larger nodes"
        ) from wrong


# ---- on a worker -------------------------------------------------------------------------------------------------


def _carry_out(function: Callable[[Any], Any], parcel: bytes, n: int, wanted: Mapping[str, str]) -> bytes:
    """One weight, with ``n`` threads of linear algebra; the findings as bytes, so that none pins Ray's store."""
    _same_versions(wanted)
    with threads(n):
        return pickle.dumps(function(unpack(parcel)), protocol=5)


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def _same_versions(wanted: Mapping[str, str]) -> None:
    for name, there in wanted.items():
        here = _versions()[name]
        if here != there:
            raise EnvironmentFailure(
                f"{platform.node()} has {name} {here}, the driver {there}: numbers would differ. "
                "Install the same on every machine"
            )


# ---- the cluster -------------------------------------------------------------------------------------------------


@contextmanager
def _connected(run: RayRun) -> Iterator[Any]:
    """Ray, joined to the cluster that was asked for; one that the caller has joined already is used and left as is."""
    with ExitStack() as undo:
        undo.enter_context(_environment(ALWAYS))
        ray = _imported()
        if ray.is_initialized():
            yield ray
            return
        options: dict[str, Any] = {}
        if run.private:
            undo.enter_context(_kept_to_itself())
            undo.enter_context(patient())
            folder = undo.enter_context(_folder())
            options = {"num_cpus": run.workers or cores(), "object_store_memory": STORE, "_temp_dir": folder}
            options |= {"include_dashboard": False}
        undo.enter_context(_replaced("ray._private.worker", "print_to_stdstream", _tell))
        options |= {"namespace": "netspectra", "log_to_driver": False, "logging_level": "ERROR"}
        undo.callback(ray.shutdown)
        with _own_sigterm():
            _join(ray, run._where, job_config=_no_code(), **options)
        yield ray


def _join(ray: Any, address: str, **options: Any) -> None:
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as wrong:
        why = str(wrong).strip().splitlines()[0][:300]
        if address == "local":
            raise EnvironmentFailure(f"Ray does not start here: {why}. Leave --engine out to do without") from wrong
        raise EnvironmentFailure(
            f"no Ray cluster that can be joined at {address!r}: {why}. Start one with 'ray start --head', or leave the "
            "address out for one of this machine"
        ) from wrong


def _imported() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputRefused("the engine 'ray' needs Ray: pip install 'netspectra[ray]'") from None


def _no_code() -> Any:
    """The description of a job whose workers do not get the driver's current folder into their search path.

    Ray puts it there unless the job has a working directory of its own; a checkpoint's folder may hold a ``torch.py``.
    """
    base = importlib.import_module("ray.job_config").JobConfig
    return type("JobConfig", (base,), {"_runtime_env_has_working_dir": lambda self: True})()


@contextmanager
def _environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Variables as they are given (None: unset) inside the block, and as they were after it."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _kept_to_itself() -> Iterator[None]:
    """A cluster that starts inside the block listens on loopback only, and to nobody without its token.

    Whoever reaches Ray's ports can run code. Ray binds them to every interface unless its support for clusters is off
    (a constant, and a variable that its processes read); the token keeps other users of this machine out.
    """
    settings = PRIVATE | {"RAY_AUTH_TOKEN": _token(), "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE")}
    with _environment(settings), _replaced("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", False):
        yield


@contextmanager
def patient() -> Iterator[None]:
    """Wait for nodes that start inside the block as long as a busy machine may take."""
    ask = importlib.import_module("ray._private.services").get_node

    def answered(*given: Any) -> Any:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return ask(*given)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(LOOK)

    with _replaced("ray._private.services", "get_node", answered):
        yield


@contextmanager
def _replaced(module: str, name: str, value: Any) -> Iterator[None]:
    """Another value for a global of Ray that has no setting."""
    where = importlib.import_module(module)
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


def _tell(data: Mapping[str, Any], **how: Any) -> None:
    """What Ray says of lost nodes and tasks, in a line on standard error; Ray itself prints it on standard output."""
    for message in data["lines"]:
        sys.stderr.write(f"ray: {' '.join(str(message).split())[:TOLD]}\n")


@cache
def _token() -> str:
    """One a process: Ray reads it once."""
    return secrets.token_hex(32)


@contextmanager
def _folder() -> Iterator[str]:
    """A folder for the private cluster's sockets and logs; a name too long for sockets is moved to /tmp.

    A process of its own removes it where this one is killed: its input ends then.
    """
    home = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="netspectra-ray-", dir=home if len(home) <= SOCKETS else "/tmp")
    sweep = 'cat; for i in 1 2 3 4 5; do rm -rf "$0"; sleep 5; done'  # Ray's processes write for a while yet
    sweeper = None
    if os.name == "posix":
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        sweeper = subprocess.Popen(["sh", "-c", sweep, folder], stdin=subprocess.PIPE, **silent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if sweeper is not None and sweeper.stdin is not None:
            sweeper.kill()
            sweeper.wait()
            sweeper.stdin.close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM when it starts, and leaves with another exit code: keep the handler there was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

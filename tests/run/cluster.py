"""A real Ray cluster of several nodes on loopback, in a network of its own: ``python -m tests.run.cluster FOLDER``.

Prints one line of JSON with what was seen. Nodes are added one after another; one is killed half-way, one comes late.
Waits are long, so that a machine that is busy with other things passes too; on an idle one they cost nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
# A node that is killed is noticed at once, one that is slow to answer is not taken for dead.
os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "120000"}
os.environ |= {"RAY_worker_register_timeout_seconds": "300", "RAY_gcs_server_request_timeout_seconds": "300"}
HERE = {"node_ip_address": "127.0.0.1"}  # whatever the machine's name leads to
LAYERS = 50
NODES = "nodes"  # folder in which each task leaves the node it ran on
LATE = "late"  # file that names the node that comes late
DOOMED = "doomed"  # file that names the node that is to be killed, whose tasks stay in work until then
PAUSE = 0.1  # seconds a task is made to take, so that half-way is a time
LONG = 240  # seconds that tasks wait for the node that comes late


def loopback_up() -> None:
    """Switch ``lo`` on: in a network namespace that ``unshare -n`` made nothing else exists."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING


def checkpoint(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(96 + i, 64, generator=generator) for i in range(LAYERS)}
    tensors["layers.0.eighth"] = torch.randn(32, 32, generator=generator).to(torch.float8_e4m3fn)
    tensors["layers.0.broken"] = torch.full((8, 8), float("nan"))
    save_file(tensors, path := folder / "model.safetensors")
    return path


def network() -> Any:
    """The model of ``live.safetensors``, as workers build it."""
    from torch import nn

    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 8))


def slowly(weight: Any, options: Any, seen: str) -> Any:
    """``measure``, which leaves a trace of where it ran, and takes its time."""
    import ray

    from netspectra.verbs.analyze import measure

    node = ray.get_runtime_context().get_node_id()
    Path(seen, f"{time.time()}-{weight.name}-{node}").touch()
    late, doomed = Path(seen, "..", LATE), Path(seen, "..", DOOMED)
    until = time.monotonic() + LONG
    while doomed.exists() and doomed.read_text() == node and time.monotonic() < until:
        time.sleep(PAUSE)
    while late.exists() and late.read_text() not in visited(Path(seen)) and time.monotonic() < until:
        time.sleep(PAUSE)  # the others wait for who comes late
    time.sleep(PAUSE)
    return measure(weight, options)


def traced(seen: Path, address: str) -> Any:
    """RayRun that runs `slowly` in place of what it is given."""
    from functools import partial

    from netspectra.run.ray import RayRun

    seen.mkdir(exist_ok=True)
    inner = RayRun(address)

    def run(function: Any, weights: Any) -> Any:
        return inner(partial(slowly, seen=str(seen), **function.keywords), weights)

    return run


def visited(seen: Path) -> list[str]:
    return [path.name.rsplit("-", 1)[1] for path in sorted(seen.iterdir())]


def main(folder: Path) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    import netspectra as ns

    path, told = checkpoint(folder), {}
    plain = ns.analyze(path).to_json()
    cluster = Cluster()
    begun = time.monotonic()
    cluster.add_node(num_cpus=0, include_dashboard=False, **HERE)  # the head does no work: it is known who does
    first = cluster.add_node(num_cpus=1, **HERE)
    second = cluster.add_node(num_cpus=1, **HERE)
    told["seconds, three nodes"] = round(time.monotonic() - begun, 1)
    names = {first.node_id: "first", second.node_id: "second"}

    # one node killed half-way, another comes late
    done = 0
    late: list[Any] = []

    def half_way(weight: Any) -> None:
        nonlocal done
        done += 1
        if done == LAYERS // 3:
            (folder / DOOMED).write_text(second.node_id)
        if done == LAYERS // 2:
            cluster.remove_node(second, allow_graceful=False)
            late.append(cluster.add_node(num_cpus=1, **HERE))
            (folder / LATE).write_text(late[0].node_id)

    begun = time.monotonic()
    seen = folder / NODES
    found = ns.analyze(path, run=traced(seen, cluster.address), progress=half_way)
    told["seconds, a node killed"] = round(time.monotonic() - begun, 1)
    names[late[0].node_id] = "late"
    where = visited(seen)
    told["identical, a node killed"] = found.to_json() == plain
    told["tasks"] = {name: where.count(node) for node, name in names.items()}
    told["repeated"] = len(where) - LAYERS - 2
    (folder / LATE).unlink()

    # the driver killed, and resumed by a new one
    command = [sys.executable, "-m", "tests.run.cluster", "drive", str(folder), cluster.address]
    kept, marks = folder / "job.run", folder / "before"
    driver = subprocess.Popen(command)
    while not marks.exists() or len(list(marks.iterdir())) < LAYERS // 2:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    from netspectra.runfile import RunFile

    told["kept by the killed driver"] = len(RunFile.read(kept).found())
    begun = time.monotonic()
    subprocess.run([*command, "resumed"], check=True)
    told["seconds, resumed"] = round(time.monotonic() - begun, 1)
    told["identical, resumed"] = (folder / "out.json").read_text() == plain
    told["done again"] = len(list((folder / "after").iterdir()))
    begun = time.monotonic()
    told["identical, verbs"] = verbs(folder, cluster.address)
    told["seconds, verbs"] = round(time.monotonic() - begun, 1)
    cluster.shutdown()
    return told


def verbs(folder: Path, address: str) -> dict[str, bool]:
    """Whether each of the other verbs gives the same bytes here as in one process."""
    import torch
    from safetensors.torch import save_file

    import netspectra as ns
    from netspectra.run.ray import RayRun
    from netspectra.verbs.compress.calibrate import Calibration
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.verbs.compress.streamed import compress_stream
    from netspectra.verbs.quantize.options import QuantizeOptions
    from netspectra.verbs.quantize.streamed import quantize_stream

    torch.manual_seed(0)
    model, inputs = folder / "live.safetensors", folder / "inputs.safetensors"
    save_file(network().state_dict(), model)
    save_file({"x": torch.randn(300, 24)}, inputs)
    save_file({name: 1.01 * W for name, W in network().state_dict().items()}, other := folder / "other.safetensors")
    cluster, same = RayRun(address), {}

    def both(verb: str, act: Any) -> None:
        """Act with each engine, the first time in one process; bytes come back."""
        same[verb] = act("local", None) == act("ray", cluster)

    def compare(name: str, run: Any) -> str:
        return ns.compare(model, other, run=run).to_json()

    def calibrate(name: str, run: Any) -> bytes:
        into = folder / f"moments-{name}.safetensors"
        ns.calibrate(model, inputs, model="tests.run.cluster:network", shards=3, run=run).save(into)
        return into.read_bytes()

    def compress(name: str, run: Any) -> list[bytes]:
        known = Calibration.load(folder / "moments-local.safetensors")
        more = {} if run is None else {"run": run}
        plan, _ = compress_stream(ns.open(model), folder / name, CompressOptions(keep=0.5), calibration=known, **more)
        return [plan.to_json().encode(), *(file.read_bytes() for file in sorted((folder / name).iterdir()))]

    def quantize(name: str, run: Any) -> list[bytes]:
        known = Calibration.load(folder / "moments-local.safetensors")
        more = {} if run is None else {"run": run}
        options, to = QuantizeOptions(bits=6, ranks=(0, 2)), folder / f"{name}-codes"
        plan, _ = quantize_stream(ns.open(model), to, options, calibration=known, **more)
        return [plan.to_json().encode(), *(file.read_bytes() for file in sorted(to.iterdir()))]

    with cluster.joined():
        both("compare", compare)
        both("calibrate", calibrate)
        both("compress", compress)
        both("quantize", quantize)
    return same


def drive(folder: Path, address: str, again: bool) -> None:
    import netspectra as ns

    seen = folder / ("after" if again else "before")
    found = ns.analyze(folder / "model.safetensors", run=traced(seen, address), runfile=folder / "job.run")
    (folder / "out.json").write_text(found.to_json())


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        drive(Path(sys.argv[2]), sys.argv[3], "resumed" in sys.argv)
    else:
        from netspectra.run.ray import patient

        loopback_up()
        with patient():
            print(json.dumps(main(Path(sys.argv[1]))))

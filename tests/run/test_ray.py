"""The engine's own logic, on a cluster that is played: everything travels as bytes, tasks end in any order."""

import importlib
import pickle
import random
import types
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

import netspectra as ns
from netspectra.faces.cli.engine import engine
from netspectra.run import cost, local
from netspectra.run.local import LocalRun
from netspectra.run.ray import WORKER, RayRun, demanded
from netspectra.verbs.analyze import AnalyzeOptions, measure
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.streamed import compress_stream
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.streamed import quantize_stream

module = importlib.import_module("netspectra.run.ray")


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__("long text of a task\nwith a traceback")
        self.cause = cause


@dataclass
class Played:
    """What the engine uses of Ray, in this process."""

    cpus: int = 2
    memory: float = 8e9
    gpus: float = 0
    lose: str = ""
    grow: int = 0
    demands: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    most: int = 0
    exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def put(self, value):
        return pickle.dumps(value)

    def remote(self, **always):
        def of(function):
            return types.SimpleNamespace(options=lambda **demand: self._task(function, always | demand))

        return of

    def _task(self, function, demand):
        def remote(handed, *arguments):
            self.demands.append(demand)
            self.open.append(task := (lambda: function(pickle.loads(handed), *pickle.loads(pickle.dumps(arguments)))))
            self.names[task] = demand["name"]
            self.most = max(self.most, len(self.open))
            return task

        return types.SimpleNamespace(remote=remote)

    def __post_init__(self):
        self.open, self.names, self.draws = [], {}, random.Random(0)

    def wait(self, refs, num_returns, timeout):
        ready = [self.draws.choice(refs)] if timeout else [ref for ref in refs if self.draws.random() < 0.3]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref):
        self.open.remove(ref)
        self.cpus += self.grow
        if self.names[ref] == self.lose:
            raise RayError("The worker died unexpectedly\nmore")
        try:
            return pickle.loads(pickle.dumps(ref()))
        except Exception as wrong:
            raise RayTaskError(wrong) from wrong

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": self.cpus, "memory": self.memory, "GPU": self.gpus}},
            {"Alive": False, "Resources": {"CPU": 99, "memory": 1e15, "GPU": 9}},
        ]

    def cluster_resources(self):
        return {"CPU": self.cpus}

    def cancel(self, ref, force):
        assert force
        self.cancelled.append(ref)


@pytest.fixture
def played(monkeypatch):
    cluster = Played()

    @contextmanager
    def connected(run):
        yield cluster

    monkeypatch.setattr(module, "_connected", connected)
    monkeypatch.setattr(module, "LOOK", 0.001)
    return cluster


@pytest.fixture
def checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(24 + i, 16, generator=generator) for i in range(20)}
    tensors["broken"] = torch.full((4, 4), float("inf"))
    tensors["bias"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("cpus", [1, 3, 50])
def test_the_same_bytes_as_one_process_whatever_the_cluster(checkpoint, played, cpus):
    played.cpus = cpus
    assert ns.analyze(checkpoint, run=RayRun()).to_json() == ns.analyze(checkpoint, workers=1).to_json()
    assert played.most == min(2 * cpus, 21), "as many weights handed out as the cluster has room for, no more"


def test_comparison_takes_pairs_along(checkpoint, played, tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors = {f"module.layers.{i}.weight": torch.randn(24 + i, 16, generator=generator) for i in range(20)}
    other = tmp_path / "other.safetensors"
    save_file(tensors, other)
    assert ns.compare(checkpoint, other, run=RayRun()).to_json() == ns.compare(checkpoint, other).to_json()
    assert len(played.demands) == 20


def test_compression_and_calibration_travel_too(checkpoint, played, tmp_path):
    save_file({"x": torch.ones(40, 16)}, tmp_path / "inputs.safetensors")
    made = []
    for name, run in (("here", LocalRun()), ("there", RayRun())):
        found = ns.calibrate(checkpoint, tmp_path / "inputs.safetensors", model=network, shards=3, run=run)
        found.save(tmp_path / name)
        options = CompressOptions(keep=0.5, include=("layers*",))
        known = Calibration.load(tmp_path / name)
        plan, _ = compress_stream(ns.open(checkpoint), tmp_path / f"{name}-small", options, calibration=known, run=run)
        bits = QuantizeOptions(bits=6, include=("layers*",), ranks=(0,))
        codes, _ = quantize_stream(ns.open(checkpoint), tmp_path / f"{name}-codes", bits, calibration=known, run=run)
        folders = [tmp_path / f"{name}-small", tmp_path / f"{name}-codes"]
        files = [file.read_bytes() for folder in folders for file in sorted(folder.iterdir())]
        made.append(((tmp_path / name).read_bytes(), plan.to_json(), codes.to_json(), files))
    assert made[0] == made[1]
    names = [demand["name"] for demand in played.demands]
    assert names[:3] == ["shard 1 of 3", "shard 2 of 3", "shard 3 of 3"] and len(names) == 3 + 4 * 20
    with pytest.raises(ns.InputRefused, match="this process's memory"):
        compress_stream(ns.open(checkpoint), None, options, calibration=replace(known, path=None), run=RayRun())
    with pytest.raises(ns.InputRefused, match="functions have to stand in a module"):
        ns.calibrate(checkpoint, tmp_path / "inputs.safetensors", model=lambda: network(), run=RayRun())


class Parallel(torch.nn.Module):
    """The model of ``checkpoint``: twenty layers side by side."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 24 + i, bias=False) for i in range(20))
        self.broken, self.bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers], -1)


def network():
    return Parallel()


def test_the_largest_go_first_and_say_what_they_need(checkpoint, played):
    weights = ns.open(checkpoint).weights
    found = dict(RayRun(workers=3)(partial(measure, options=AnalyzeOptions()), weights))
    assert set(found) == set(weights)
    names = [demand["name"] for demand in played.demands]
    assert names[0] == "layers.19.weight" and names[-1] == "broken"
    assert all(demand["num_cpus"] == 1 and demand["max_retries"] == 3 for demand in played.demands)
    assert all(demand["memory"] % (128 << 20) == 0 and demand["memory"] >= WORKER for demand in played.demands)
    assert played.most == 3


def test_a_giant_has_a_node_to_itself_and_the_threads_of_the_driver(checkpoint, played, monkeypatch):
    monkeypatch.setattr(local, "ALONE", 24 * 16 * 16 - 1)
    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(local, "cores", lambda: 2)
    played.cpus = 64
    threads = dict(RayRun()(_threads, ns.open(checkpoint).weights))
    assert {weight.name: n for weight, n in threads.items()} == {
        weight.name: n for weight, n in LocalRun()(_threads, threads)
    }
    assert {demand["num_cpus"] for demand in played.demands if demand["name"] != "broken"} == {2}
    played.demands.clear()
    played.cpus = 1
    list(RayRun()(_threads, ns.open(checkpoint).weights))
    assert {demand["num_cpus"] for demand in played.demands} == {1}, "no more than any node has"


def _threads(weight):
    return torch.get_num_threads()


def test_a_cluster_that_grows_is_given_more(checkpoint, played):
    played.cpus, played.grow = 1, 1
    list(RayRun()(_threads, ns.open(checkpoint).weights))
    assert played.most > 4


def test_exceptions_travel_as_themselves_and_end_the_run(checkpoint, played):
    weights = ns.open(checkpoint).weights
    for raised in (ns.InputRefused("one line"), ns.NotDecomposable("NaN"), ns.EnvironmentFailure("disk"), KeyError(3)):
        with pytest.raises(type(raised)) as seen:
            list(RayRun()(partial(_raise, raised), weights))
        assert seen.value.args == raised.args
    assert played.cancelled, "what was still with the cluster is called back"


def _raise(what, weight):
    raise what


def test_who_stops_asking_leaves_nothing_in_work(checkpoint, played):
    running = RayRun()(_threads, ns.open(checkpoint).weights)
    next(running)
    running.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(played.cancelled) >= 3


def test_a_weight_that_takes_workers_down_is_named(checkpoint, played):
    played.lose = "layers.7.weight"
    with pytest.raises(
        ns.EnvironmentFailure, match=r"'layers.7.weight': its worker was lost 4 times.*died unexpectedly"
    ):
        ns.analyze(checkpoint, run=RayRun())


def test_what_no_node_can_hold_is_refused_before_any_work(checkpoint, played):
    played.memory = WORKER
    with pytest.raises(ns.EnvironmentFailure, match=r"largest node offers 0.5. --exclude it, or add"):
        ns.analyze(checkpoint, run=RayRun())
    assert not played.demands


def test_gpus_are_shared_and_must_be_there(checkpoint, played):
    with pytest.raises(ns.EnvironmentFailure, match="no node of the cluster has a GPU"):
        ns.analyze(checkpoint, run=RayRun(gpus=0.25))
    played.gpus = 1
    list(RayRun(gpus=0.25)(_threads, ns.open(checkpoint).weights))
    assert {demand["num_gpus"] for demand in played.demands} == {0.25}


def test_other_versions_are_refused(checkpoint, played, monkeypatch):
    monkeypatch.setattr(module, "_versions", lambda: {"torch": str(len(played.open))})
    with pytest.raises(ns.EnvironmentFailure, match=r"has torch .*, the driver .*Install the same"):
        ns.analyze(checkpoint, run=RayRun())


def test_models_in_memory_are_refused_before_a_cluster_starts(monkeypatch):
    monkeypatch.setattr(module, "_connected", lambda run: pytest.fail("started"))
    with pytest.raises(ns.InputRefused, match="tensors do not travel: save the model"):
        ns.analyze(torch.nn.Linear(3, 2), run=RayRun())
    assert list(RayRun()(_threads, [])) == []


def test_a_partner_counts_as_memory(checkpoint, played):
    alone = demanded(ns.open(checkpoint).weights[0])
    ns.compare(checkpoint, checkpoint, run=RayRun())
    assert alone <= played.demands[0]["memory"]
    from netspectra.verbs.compare.compare import _Paired
    from netspectra.verbs.compare.matching import Pair

    one = ns.open(checkpoint).weights[0]
    pair = _Paired.of(Pair(one, one, "name"))
    assert pair.beside == one.nbytes + 48 * one.parameters
    assert pair.shape == one.shape and cost.working_set(pair) == cost.working_set(one)


def test_options_that_cannot_be_meant():
    for wrong in ({"workers": -1}, {"gpus": -1.0}, {"gpus": 1.5}, {"retries": -1}):
        with pytest.raises(ns.InputRefused):
            RayRun(**wrong)
    with pytest.raises(ns.InputRefused, match="ray job submit"):
        RayRun("ray://head:10001")


def test_without_ray_the_extra_is_named(checkpoint, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ns.InputRefused, match=r"pip install 'netspectra\[ray\]'"):
        ns.analyze(checkpoint, run=RayRun())


def test_the_command_line_chooses_the_engine(capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert engine("local", None, workers=3, quiet=True) == LocalRun(workers=3)
    assert engine("ray", "auto", workers=3, quiet=False) == RayRun("auto", workers=3)
    assert not capsys.readouterr().err
    assert engine("ray", None, 0.5, workers=0, device="cuda", quiet=False) == RayRun(gpus=0.5)
    assert capsys.readouterr() == ("", "starting Ray on this machine (15 to 30 seconds)\n")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert not RayRun().private
    for arguments, said in (
        (("spark", None), "there are local, ray"),
        (("local", "auto"), "--address goes with"),
        (("local", None, 0.5), "--gpus goes with"),
        (("ray", None, 0.5), "--device cuda"),
    ):
        with pytest.raises(ns.InputRefused, match=said):
            engine(*arguments, workers=0, quiet=True)
    with pytest.raises(ns.InputRefused, match="Ray chooses which GPU"):
        engine("ray", None, workers=0, device="cuda:1", quiet=True)

"""A calibration cut into shards: the same sums as at once, the same bytes whichever engine."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import netspectra as ns
from netspectra.linalg.moments import Moments
from netspectra.linalg.threads import threads
from netspectra.live.spill import Spill
from netspectra.run.cost import cores
from netspectra.run.local import LocalRun, serial
from netspectra.verbs.compress.calibrate import Calibration, joined
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.streamed import compress_stream
from netspectra.verbs.compress.workshop import moments, prepared
from tests.faces.test_cli import run

NAME = f"{__name__}:network"


class Branches(nn.Module):
    """Two layers that share an input, and one that half of the samples never reach."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.rare, self.out = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x):
        y = torch.tanh(self.one(x)) + self.two(x)
        return self.out(y + self.rare(y) if float(x[0, 0]) > 0 else y)


def network():
    return Branches()


@pytest.fixture
def files(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(network().state_dict(), tmp_path / "model.safetensors")
        save_file({"x": torch.randn(100, 12)}, tmp_path / "inputs.safetensors")
    return tmp_path / "model.safetensors", tmp_path / "inputs.safetensors"


def calibrated(files, **how):
    return ns.calibrate(*files, model=network, batch_size=8, **how)


def kept(found, path):
    found.save(path)
    return path.read_bytes()


def test_one_shard_is_what_compress_measures(files, tmp_path):
    found = calibrated(files, shards=1)
    model = network()
    model.load_state_dict({ref.name: ref.load() for ref in ns.open(files[0]).tensors})
    batches = ns.open(files[1]).tensors[0].load().split(8)
    options = CompressOptions()
    at_once = moments(model, options, prepared(model, options, list(batches)))
    assert kept(found, tmp_path / "a") == kept(at_once, tmp_path / "b")


@pytest.mark.parametrize("shards", [2, 5, 40])
def test_shards_add_up_to_the_whole(files, shards):
    """Inputs are the same; gradients are of other draws, so only how many there are."""
    whole, parts = calibrated(files, shards=1), calibrated(files, shards=shards)
    assert parts.samples == whole.samples and parts.owner == whole.owner
    assert parts.calls == whole.calls and parts.shapes.keys() == whole.shapes.keys()
    for name, one in whole.inputs.items():
        assert parts.inputs[name].count == one.count
        assert torch.allclose(parts.inputs[name].total, one.total, rtol=1e-5, atol=1e-4)
        assert torch.allclose(parts.inputs[name].sum, one.sum, rtol=1e-5, atol=1e-4)
    assert {name: m.count for name, m in parts.outputs.items()} == {name: m.count for name, m in whole.outputs.items()}


def test_no_engine_changes_a_byte(files, tmp_path):
    def backwards(function, jobs):
        return iter([(job, pickle.loads(pickle.dumps(function(job)))) for job in reversed(list(jobs))])

    def narrow(function, jobs):
        """As on a cluster: another process's numbers, in any order, with the driver's threads."""
        with threads(cores()):
            yield from backwards(function, jobs)

    with_one = kept(calibrated(files, shards=4), tmp_path / "a")
    assert kept(calibrated(files, shards=4, run=serial), tmp_path / "b") == with_one
    assert kept(calibrated(files, shards=4, run=LocalRun(workers=1)), tmp_path / "c") == with_one
    assert kept(calibrated(files, shards=4, run=narrow), tmp_path / "d") == with_one


def test_layers_that_part_ways_in_one_shard_have_inputs_of_their_own():
    def seen(owner, **inputs):
        return Calibration({n: Moments.zeros(1).add_(torch.tensor([[v]])) for n, v in inputs.items()}, owner, samples=1)

    shared = {"q": "q", "k": "q", "v": "q"}
    both = joined([seen(shared, q=1.0), seen({"q": "q", "k": "k", "v": "q"}, q=2.0, k=3.0), seen(shared, q=5.0)])
    assert both.owner == {"q": "q", "k": "k", "v": "q"} and both.samples == 3
    assert both.inputs["q"].sum.item() == 8 and both.inputs["k"].sum.item() == 9
    late = joined([seen({"q": "q"}, q=1.0), seen({"q": "q", "new": "new"}, q=2.0, new=4.0)])
    assert late.inputs["new"].count == 1 and late.inputs["q"].total.item() == 5


def test_what_waits_in_a_file_travels_as_numbers():
    waiting = Moments.zeros(3).add_(torch.ones(2, 3))
    total, waiting.held = waiting.total, Spill().put(waiting.held)
    arrived = pickle.loads(pickle.dumps(waiting))
    assert isinstance(arrived.held, torch.Tensor) and torch.equal(arrived.total, total)


def test_saving_twice_gives_the_same_bytes(files, tmp_path):
    found = calibrated(files, shards=2)
    assert len({kept(found, tmp_path / "m.safetensors") for _ in range(6)}) == 1


def test_what_cannot_be_is_told_before_any_work(files, tmp_path):
    with pytest.raises(ns.InputRefused, match="no such file"):
        ns.calibrate(files[0], tmp_path / "none.txt")
    with pytest.raises(ns.InputRefused, match="shards"):
        calibrated(files, shards=0)
    with pytest.raises(ns.InputRefused, match="spread"):
        calibrated(files, spread=0.4)
    with pytest.raises(ns.InputRefused, match="no layer is selected"):
        calibrated(files, include=("nothing*",))


def test_moments_from_the_command_line_plan_a_stream(files, tmp_path):
    out = tmp_path / "moments.safetensors"
    done = run("calibrate", *files, "-o", out, "--model", NAME, "--batch-size", "8", "--shards", "3")
    assert done.returncode == 0 and "4 layers, 88 samples" in done.stdout
    assert out.read_bytes() == kept(calibrated(files, shards=3), tmp_path / "same")
    compress = ["compress", files[0], "--keep", "0.5", "-o", tmp_path / "small"]
    assert run(*compress, "--stream", "--moments", out).returncode == 0
    done = run(*compress, "--engine", "ray")
    assert done.returncode and "--engine goes with --stream" in done.stderr


def test_engines_compress_to_the_same_bytes_in_any_order(files, tmp_path):
    calibrated(files, shards=2).save(tmp_path / "moments.safetensors")
    known = Calibration.load(tmp_path / "moments.safetensors")

    def backwards(function, weights):
        return iter([(weight, function(weight)) for weight in reversed(list(weights))])

    made = []
    for name, engine in (("a", LocalRun()), ("b", serial), ("c", backwards)):
        plan, _ = compress_stream(
            ns.open(files[0]), tmp_path / name, CompressOptions(keep=0.5), calibration=known, run=engine
        )
        made.append((plan.to_json(), *((f.name, f.read_bytes()) for f in sorted((tmp_path / name).iterdir()))))
    assert made[0] == made[1] == made[2]

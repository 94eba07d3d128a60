"""Files of moments, spoilt: they are read, or refused in one line that names the file; never a traceback."""

from random import Random

import pytest
import torch
from safetensors.torch import save_file

import netspectra as ns
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.streamed import compress_stream
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.planning import quantize
from netspectra.verbs.quantize.streamed import quantize_stream
from tests.attacks.mutate import spoil


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 8)).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    save_file(network().state_dict(), folder / "model.safetensors")
    _, shop = quantize(network(), QuantizeOptions(bits=6, group=8), [torch.randn(64, 16)])
    shop.calibration.save(folder / "moments.safetensors")
    return folder


@pytest.mark.parametrize("seed", range(10))
def test_what_is_spoilt_is_refused_or_read(files, seed):
    chance, honest = Random(seed), (files / "moments.safetensors").read_bytes()
    source, target, refused = ns.open(files / "model.safetensors"), files / "spoilt.safetensors", 0
    for _ in range(40):
        target.write_bytes(spoil(honest, "safetensors", chance))
        try:
            known = Calibration.load(target)
            quantize_stream(source, None, QuantizeOptions(bits=6, group=8, ranks=(0,)), calibration=known)
            compress_stream(source, None, CompressOptions(keep=0.9), calibration=known)
        except ns.InputRefused as refusal:
            refused += 1
            assert "\n" not in str(refusal) and str(refusal).isprintable()
    assert refused


def test_of_another_model(files, tmp_path):
    """Moments of other widths under the same names are refused before any work is wasted on them."""
    save_file(torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.GELU(), torch.nn.Linear(24, 8)).state_dict(),
              tmp_path / "other.safetensors")  # fmt: skip
    known = Calibration.load(files / "moments.safetensors")
    with pytest.raises(ns.InputRefused, match="another model"):
        quantize(torch.nn.Sequential(torch.nn.Linear(16, 20), torch.nn.GELU(), torch.nn.Linear(20, 8)),
                 QuantizeOptions(bits=6, group=8), calibration=known)  # fmt: skip
    with pytest.raises(ns.InputRefused, match="another model"):
        quantize_stream(ns.open(tmp_path / "other.safetensors"), None, QuantizeOptions(bits=6, group=8),
                        calibration=known)  # fmt: skip
    save_file({"other.weight": torch.randn(24, 16)}, tmp_path / "named.safetensors")
    with pytest.raises(ns.InputRefused, match="none of the selected"):
        quantize_stream(ns.open(tmp_path / "named.safetensors"), None, QuantizeOptions(bits=6, group=8),
                        calibration=known)  # fmt: skip

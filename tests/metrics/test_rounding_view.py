"""Files of quantized weights with planted answers: rank above the noise, step and edge, as ``analyze`` tells them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import netspectra as ns
from netspectra.linalg.packing import pack
from netspectra.linalg.rounding import Grid, nearest

M, N, RANK = 96, 160, 12


def planted(seed: int = 0) -> torch.Tensor:
    """A matrix of rank 12, every value far above what rounding adds, and entries of all sizes."""
    g = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(size, RANK, generator=g)).Q for size in (M, N))
    return U * torch.linspace(90, 40, RANK) @ V.mT


def edge_of(step: torch.Tensor) -> float:
    """From the step of each entry, (M, N): the rows' and the columns' largest root sums of variances."""
    variance = (step.double().square() / 12).expand(M, N)
    return float(variance.sum(1).max() ** 0.5 + variance.sum(0).max() ** 0.5)


def check(path, name: str, step: torch.Tensor, rel: float = 0.02) -> None:
    found = ns.analyze(path)
    [record] = [one for one in found if one.name == name]
    edge = record.metrics["rounding_edge"]
    assert edge.detail["above"] == RANK and edge.detail["of"] == M
    assert float(edge) == pytest.approx(edge_of(step), rel=rel)
    assert edge.detail["step"] == pytest.approx(float(step.expand(M, N).median()), rel=rel)
    noise = record.spectrum.values[RANK]
    assert 0.6 * float(edge) < noise < 1.05 * float(edge)  # the flat tail begins at the edge
    assert "rounded" in {verdict.rule for verdict in record.verdicts}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    w = planted()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    numbers = gguf.quants.quantize(w.numpy(), gguf.GGMLQuantizationType[kind])
    writer.add_tensor("blk.0.ffn_up.weight", numbers, raw_dtype=gguf.GGMLQuantizationType[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    top = w.reshape(M, -1, 32).abs().amax(2)
    step = (top / {"Q8_0": 127, "Q4_0": 8}[kind]).repeat_interleave(32, 1)
    check(tmp_path, "blk.0.ffn_up.weight", step, rel=0.1)  # the file says which blocks; levels at their ends may lack


@pytest.mark.parametrize("axis", [None, 0])
def test_int8_onnx(tmp_path, axis):
    onnx = pytest.importorskip("onnx")
    w = planted().mT.contiguous()  # (N, M): onnx multiplies from the left
    top = w.abs().amax() if axis is None else w.abs().amax(0)
    scale = top / 127
    codes = (w / scale).round().to(torch.int8)
    make, numpy = onnx.helper, onnx.numpy_helper.from_array
    held = [numpy(codes.numpy(), "q"), numpy(scale.numpy().astype(np.float32), "s")]
    nodes = [make.make_node("DequantizeLinear", ["q", "s"], ["w"], **({} if axis is None else {"axis": 1})),
             make.make_node("MatMul", ["x", "w"], ["y"], name="/layer/MatMul")]  # fmt: skip
    values = [make.make_tensor_value_info(name, 1, None) for name in "xy"]
    graph = make.make_graph(nodes, "g", values[:1], values[1:], held)
    onnx.save(make.make_model(graph), tmp_path / "m.onnx")
    [record] = ns.analyze(tmp_path / "m.onnx")
    check(tmp_path / "m.onnx", record.name, scale if axis is None else scale[:, None], rel=0.02)


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors(tmp_path, bits, symmetric):
    coded = nearest(planted(), Grid(bits, 32, symmetric), search=False)

    def words(codes: torch.Tensor) -> torch.Tensor:
        packed = pack(codes.contiguous(), bits)
        return torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)

    tensors = {"a.weight_packed": words(coded.codes), "a.weight_scale": coded.scale,
               "a.weight_shape": torch.tensor([M, N])}  # fmt: skip
    if not symmetric:
        tensors["a.weight_zero_point"] = words(coded.zero.mT).mT.contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    groups = {"g": {"targets": ["Linear"], "weights": weights}}
    config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check(tmp_path, "a.weight", coded.scale.repeat_interleave(32, 1), rel=0.05 if bits > 3 else 0.12)


def test_the_report_shows_where_rounding_reaches(tmp_path):
    step = planted().abs().amax() / 7
    found = ns.analyze({"w": (planted() / step).round() * step})
    found.save(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "Rounded to few levels" in page and '"grid":"lattice"' in page.replace(": ", ":")

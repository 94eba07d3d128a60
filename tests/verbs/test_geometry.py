"""The geometry of a layer: against dense SVDs, for every kind of weight and input."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from netspectra.verbs.geometry.frames import axes_frame, facing, path, principal_frame


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (30, 30), (2, 9), (9, 2), (1, 7), (7, 1), (3, 3)])
def test_numbers_are_those_of_the_dense_svd(shape):
    W, X = gaussian(*shape), gaussian(50, shape[1], seed=1) + 0.3
    seen = ns.geometry(W, X)
    U, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    x, y = X.numpy(), X.numpy() @ W.numpy().T
    assert len(seen.directions) == min(8, *shape)
    for i, direction in enumerate(seen.directions):
        assert direction.sigma == pytest.approx(S[i], rel=1e-9)
        assert direction.weight_energy == pytest.approx(S[i] ** 2 / np.sum(S**2), rel=1e-9)
        assert direction.input_energy == pytest.approx(np.sum((x @ Vh[i]) ** 2) / np.sum(x**2), rel=1e-6)
        assert direction.output_energy == pytest.approx(np.sum((y @ U[:, i]) ** 2) / np.sum(y**2), rel=1e-6)
        if shape[0] == shape[1]:
            assert math.cos(math.radians(direction.turn)) == pytest.approx(abs(Vh[i] @ U[:, i]), abs=1e-6)
        else:
            assert direction.turn is None
    assert seen.typical == pytest.approx(np.linalg.norm(W.numpy()) / math.sqrt(shape[1]), rel=1e-9)
    assert seen.inputs_stretch == pytest.approx(np.linalg.norm(y) / np.linalg.norm(x), rel=1e-9)
    d = min(3, *shape)
    assert seen.shown["the weight"] == pytest.approx(np.sum(S[:d] ** 2) / np.sum(S**2))
    own = np.linalg.svd(x, compute_uv=False) ** 2
    assert seen.shown["the inputs as they are"] == pytest.approx(own[:d].sum() / own.sum())
    own = np.linalg.svd(y, compute_uv=False) ** 2
    assert seen.shown["the outputs as they are"] == pytest.approx(own[:d].sum() / own.sum())


def test_the_scene_shows_each_step_as_it_is():
    W, X = gaussian(20, 30), gaussian(15, 30, seed=1)
    scene = ns.geometry(W, X).scene
    _, S, Vh = np.linalg.svd(W.numpy(), full_matrices=False)
    inputs = scene["inputs"]
    turned = np.array(inputs["before"]) @ np.array(inputs["into"][-1])
    stretched = np.array(inputs["after"]) @ np.array(inputs["out"][0])
    assert np.allclose(np.abs(turned), np.abs(X.numpy() @ Vh[:3].T), atol=2e-3)
    assert np.allclose(np.abs(stretched), np.abs(X.numpy() @ Vh[:3].T * S[:3]), atol=1e-2)
    assert np.allclose(stretched, turned * S[:3], atol=2e-2)  # the stretch joins the two turns
    seen = np.array(inputs["before"]) @ np.array(inputs["into"][0])
    top = np.linalg.svd(X.numpy())[2][:3]
    assert np.allclose(np.sum(seen**2), np.sum((X.numpy() @ top.T) ** 2), rtol=1e-3)
    for frames in (scene["sphere"]["into"], scene["sphere"]["out"], inputs["into"], inputs["out"]):
        for frame in np.array(frames):
            assert np.allclose(frame.T @ frame, np.eye(3), atol=2e-3)  # every turn is rigid


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(3, 9))
@settings(max_examples=30, deadline=None)
def test_frames_are_orthonormal_and_turn_without_a_mirror(seed, d, n):
    rng = np.random.default_rng(seed)
    one, two = (np.linalg.qr(rng.standard_normal((n, d)))[0] for _ in range(2))
    frame = axes_frame(one)
    assert np.allclose(frame.T @ frame, np.eye(d)) and np.linalg.det(frame) == pytest.approx(1)
    frames = path(facing(one, two), two, steps=5)
    assert np.allclose(frames[0], facing(one, two)) and np.allclose(frames[-1], two)
    assert all(np.allclose(each.T @ each, np.eye(d)) for each in frames)
    points = rng.standard_normal((4, n))
    found, share = principal_frame(points, d)
    assert np.allclose(found.T @ found, np.eye(d))
    assert share == pytest.approx(np.sum((points @ found) ** 2) / np.sum(points**2))


def test_an_embedding_maps_its_tokens_to_its_rows():
    layer = torch.nn.Embedding(50, 12)
    seen = ns.geometry(layer)
    E = layer.weight.detach().double().numpy()
    S = np.linalg.svd(E, compute_uv=False)
    assert seen.tokens and seen.shape == (12, 50) and seen.inputs_are == "all 50 tokens"
    assert [d.sigma for d in seen.directions] == pytest.approx(S[:8], rel=1e-5)
    assert seen.inputs_stretch == pytest.approx(np.linalg.norm(E) / 50**0.5, rel=1e-6)
    assert seen.directions[0].turn is None and "50 tokens to 12 outputs" in str(seen)
    some = ns.geometry(layer, torch.tensor([[3, 3], [7, 0]]))
    assert some.inputs_stretch == pytest.approx(np.sqrt(np.mean(np.sum(E[[3, 3, 7, 0]] ** 2, axis=1))), rel=1e-6)
    head = ns.geometry(layer, torch.randn(5, 12))  # the same matrix as an output layer
    assert not head.tokens and head.shape == (50, 12)
    with pytest.raises(ns.InputRefused, match="token 50 does not exist"):
        ns.geometry(layer, [50])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_sees_patches_of_images(groups):
    layer = torch.nn.Conv2d(4, 6, 3, groups=groups, bias=False)
    images = torch.randn(5, 4, 8, 7)
    seen = ns.geometry(layer, images)
    with torch.no_grad():
        out = layer(images).double()
    patches = torch.nn.functional.unfold(images, 3).double()
    assert seen.kind == "conv2d" and seen.shape == (6, 36)
    assert seen.inputs_are == "150 patches of images"
    assert seen.inputs_stretch == pytest.approx(float(out.norm() / patches.norm()), rel=1e-5)
    assert ns.geometry(layer, patches.mT.reshape(-1, 36)).inputs_stretch == pytest.approx(seen.inputs_stretch, rel=1e-9)


def test_records_models_and_paths_are_taken(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    torch.save(model.state_dict(), tmp_path / "m.pt")
    expected = ns.geometry(model[1].weight).directions
    for found in (
        ns.geometry(ns.analyze(model)["1.weight"]),
        ns.geometry(model, name="1.weight"),
        ns.geometry(tmp_path / "m.pt", name="1.weight"),
        ns.geometry(ns.open(model).weights[1]),
    ):
        assert found.name == "1.weight" and found.directions == expected
    assert ns.geometry(model[0]).shape == (5, 6)  # a layer with one weight needs no name
    with pytest.raises(ns.InputRefused, match="2 weights: name one"):
        ns.geometry(model)
    with pytest.raises(ns.InputRefused, match=r"no weight '1\.wait'; near are 1\.weight"):
        ns.geometry(model, name="1.wait")


def test_the_same_weight_gives_the_same_bytes_and_no_generator_moves():
    W, X = gaussian(300, 200).float(), gaussian(500, 200, seed=1)
    state = torch.get_rng_state()
    one, two = (ns.geometry(W, X) for _ in range(2))
    assert json.dumps(one.to_dict(), allow_nan=False) == json.dumps(two.to_dict(), allow_nan=False)
    assert one.to_html() == two.to_html()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        (torch.zeros(3, 5), "takes 6 numbers each"),
        (torch.zeros(0, 6), "no inputs"),
        (np.array([["a"] * 6]), "give numbers"),
        (torch.full((2, 6), float("nan")), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, why):
    with pytest.raises(ns.NetspectraError, match=why):
        ns.geometry(gaussian(4, 6), inputs)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_an_adapter_has_no_more_directions_than_its_rank(rank):
    A, B = torch.randn(rank, 12), torch.randn(9, rank)
    source = ns.open({"layer.lora_A.weight": A, "layer.lora_B.weight": B})
    seen = ns.geometry(source.weights[0], torch.randn(30, 12))
    truth = np.linalg.svd((B.double() @ A.double()).numpy(), compute_uv=False)
    scale = seen.directions[0].sigma / truth[0]
    assert [d.sigma for d in seen.directions] == pytest.approx(scale * truth[:rank], rel=1e-5)
    assert len(seen.scene["sigma"]) == min(rank, 3)
    seen.to_html()


def test_zero_weights_and_zero_inputs_have_a_geometry():
    seen = ns.geometry(torch.zeros(4, 5), torch.zeros(3, 5))
    assert seen.typical == 0 and seen.inputs_stretch == 0
    assert all(math.isfinite(d.input_energy) for d in seen.directions)
    json.dumps(seen.to_dict(), allow_nan=False)
    assert "NaN" not in seen.to_html()


def test_many_inputs_are_sampled_and_it_is_said():
    seen = ns.geometry(gaussian(4, 6), gaussian(5000, 6), labels=list(range(5000)), points=100)
    assert seen.notes == ("4096 of 5000 inputs, evenly chosen, were used",)
    assert len(seen.scene["inputs"]["before"]) == len(seen.scene["inputs"]["labels"]) == 100
    with pytest.raises(ns.InputRefused, match="3 labels for 5 inputs"):
        ns.geometry(gaussian(4, 6), gaussian(5, 6), labels=[1, 2, 3])


def test_figure_and_files(tmp_path):
    seen = ns.geometry(gaussian(8, 6), gaussian(20, 6), labels=["a", "b"] * 10)
    assert len(seen.figure.data) == 4 * 4  # a circle, two arrows and the inputs at each step
    for name in ("g.html", "g.json"):
        seen.save(tmp_path / name)
    assert json.loads((tmp_path / "g.json").read_text())["shape"] == [8, 6]
    assert "default-src 'none'" in (tmp_path / "g.html").read_text()
    assert "<iframe srcdoc=" in seen._repr_html_()
    with pytest.raises(ns.InputRefused, match=r"\.html, \.json"):
        seen.save(tmp_path / "g.txt")


def test_a_report_takes_geometries_and_other_files_refuse_them(tmp_path):
    model = torch.nn.Linear(6, 5)
    analysis, seen = ns.analyze(model), ns.geometry(model)
    analysis.save(tmp_path / "r.html", geometry=[seen])
    assert '"scene"' in (tmp_path / "r.html").read_text()
    with pytest.raises(ns.InputRefused, match="only the report"):
        analysis.save(tmp_path / "r.json", geometry=[seen])

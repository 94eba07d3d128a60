"""What is quantized: MiniLM, SmolLM2, a character-level Transformer trained here, a CNN trained here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compress.texts import DATA, addresses, topics

GROUP = 64


@dataclass
class Subject:
    """A model, what it is calibrated with, and how far a changed one is from it on samples never seen.

    Attributes:
        name: for the page.
        measure: what `distance` gives.
        model: eval mode.
        calibration: batches; an eighth is held back by the planner.
        include: patterns of the weights that are quantized.
        distance: by name of a test set, for a changed model.
        note: what a reader should know.
        wide: whether joint plans are measured, too.
    """

    name: str
    measure: str
    model: nn.Module
    calibration: Sequence[Any]
    include: tuple[str, ...]
    distance: Callable[[nn.Module], dict[str, float]]
    note: str = ""
    wide: bool = False


def divergences(model: nn.Module, tests: dict[str, list[Any]], logits: Callable[[nn.Module, Any], Tensor]) -> Any:
    """Mean KL(original || changed) of the predictions, by test set."""
    with torch.no_grad():
        wanted = {name: [logits(model, b).log_softmax(-1) for b in batches] for name, batches in tests.items()}

    @torch.no_grad()
    def distance(changed: nn.Module) -> dict[str, float]:
        found = {}
        for name, batches in tests.items():
            total, count = 0.0, 0
            for batch, p in zip(batches, wanted[name], strict=True):
                q = logits(changed, batch).log_softmax(-1)
                total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
                count += p[..., 0].numel()
            found[name] = total / count
        return found

    return distance


# ---- MiniLM ------------------------------------------------------------------------------------------------------


def minilm(quick: bool) -> Subject:
    from benchmarks.compress.minilm import ENCODER, Model

    found = Model(32, 8) if quick else Model(256, 96)
    return Subject(
        "MiniLM",
        "1 - cosine of the sentence embedding",
        found.module,
        found.calibration,
        ENCODER,
        lambda changed: {name: 1 - value for name, value in found.cosines(changed).items()},
        "calibrated and tested (in) on paragraphs of Python's language reference; out: State of the Union addresses",
        wide=True,
    )


# ---- SmolLM2 -----------------------------------------------------------------------------------------------------


def smollm(quick: bool) -> Subject:
    import netspectra as ns
    from benchmarks.compress.smollm import smollm as file
    from netspectra.live.build import build
    from netspectra.live.samples import text_batches, tokenizer

    source = ns.open(file())
    model, words = build(source), tokenizer(source)
    texts, (count, tests) = topics(), (4, 2) if quick else (32, 8)

    def batches(some: list[str]) -> list[Any]:
        return text_batches(sorted(some, key=len), words, model, size=2 if quick else 8, longest=64)

    def logits(network: nn.Module, batch: Any) -> Tensor:
        return network(**batch).logits[batch["attention_mask"].bool()].float()

    held = {"in": batches(texts[count : count + tests]), "out": batches(addresses()[:tests])}
    blocks = (0,) if quick else (0, 10, 20, 29)
    return Subject(
        "SmolLM2-135M",
        "KL of the next token",
        model,
        batches(texts[:count]),
        tuple(f"model.layers.{i}.*" for i in blocks),
        divergences(model, held, logits),
        f"from a Q4_1 GGUF: its weights lie on a 4-bit grid already, which flatters 4 bits; blocks "
        f"{', '.join(map(str, blocks))} of 30 are quantized, the rest is left alone",
    )


# ---- a character-level Transformer -------------------------------------------------------------------------------


class Block(nn.Module):
    """Causal attention and an MLP, before each a layer norm."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Characters(nn.Module):
    """A small GPT over characters."""

    def __init__(self, vocabulary: int, d: int = 128, depth: int = 4, heads: int = 4, length: int = 96) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, d), nn.Embedding(length, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Text:
    """Characters of the addresses: windows drawn at random, from nine tenths to train on or from the last, held out.

    ``other`` is text of another kind, as far as its characters are known.
    """

    def __init__(self, length: int = 96) -> None:
        if not DATA.is_dir():
            raise SystemExit(f"{DATA} is absent: set NETSPECTRA_SHARED to the folder that holds data/state_union")
        text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(DATA.glob("*.txt"))[:40])
        known = sorted(set(text))
        numbers = {c: i for i, c in enumerate(known)}
        ids = torch.tensor([numbers[c] for c in text[:1_200_000]])
        split = int(0.9 * len(ids))
        self.known, self.train, self.held, self.length = len(known), ids[:split], ids[split:], length
        self.other = torch.tensor([numbers[c] for c in "\n".join(topics()) if c in numbers])
        self.generator = torch.Generator().manual_seed(0)

    def drawn(self, data: Tensor, rows: int) -> Tensor:
        """(rows, length + 1) windows: what is read, and one further what comes next."""
        starts = torch.randint(0, len(data) - self.length - 1, (rows,), generator=self.generator)
        return torch.stack([data[s : s + self.length + 1] for s in starts.tolist()])

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Nats a character."""
        return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def taught(text: Text, d: int, depth: int, steps: int) -> Characters:
    """A small GPT trained on windows of the text; eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Characters(text.known, d, depth)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            optimizer.zero_grad()
            text.loss(model, text.drawn(text.train, 24)).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def characters(quick: bool) -> Subject:
    text, steps = Text(), 30 if quick else 700
    model = taught(text, 64 if quick else 128, 2 if quick else 4, steps).requires_grad_(True)
    count = 2 if quick else 6
    tests = {"in": [text.drawn(text.held, 32)[:, :-1] for _ in range(count)]}
    with torch.no_grad():
        loss = float(text.loss(model, text.drawn(text.held, 128)))
    calibration = [{"input_ids": text.drawn(text.train, 32)[:, :-1]} for _ in range(2 if quick else 16)]
    tests["out"] = [text.drawn(text.other, 32)[:, :-1] for _ in range(count)]
    return Subject(
        "character Transformer",
        "KL of the next character",
        model,
        calibration,
        ("blocks.*",),
        divergences(model, tests, lambda network, batch: network(batch)),
        f"{len(model.blocks)} blocks, trained here {steps} steps on State of the Union addresses; {loss:.3f} nats a "
        "character on held-out text (in); out: Python's language reference",
    )


# ---- a CNN -------------------------------------------------------------------------------------------------------


def cnn(quick: bool) -> Subject:
    from benchmarks.compress.digits import trained

    model, train, test, labels = trained(2 if quick else 20)
    model.requires_grad_(True)
    with torch.no_grad():
        accuracy = float((model(test).argmax(1) == labels).float().mean())
    return Subject(
        "digits CNN",
        "KL of the class",
        model,
        list(train[:1024].split(64)),
        (),
        divergences(model, {"test images": [test]}, lambda network, batch: network(batch)),
        f"four convolutions and a linear layer, trained here; accuracy {accuracy:.3f} on test images",
    )


SUBJECTS: dict[str, Callable[[bool], Subject]] = {
    "minilm": minilm,
    "characters": characters,
    "cnn": cnn,
    "smollm": smollm,
}
__all__ = ["GROUP", "SUBJECTS", "Subject"]

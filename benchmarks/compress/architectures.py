"""Tiny instances, random weights, of the architectures that compression must cover; each with a batch to run it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """Attributes:
    make: builds the model, with random weights.
    batch: a batch of inputs, by seed and number of samples.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]


def tokens(seed: int, samples: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, 96, (samples, 12), generator=g)}


def masked(seed: int, samples: int) -> dict[str, Tensor]:
    found = tokens(seed, samples)
    mask = torch.ones_like(found["input_ids"])
    mask[0, 9:] = 0
    return {**found, "attention_mask": mask}


def sequences(seed: int, samples: int) -> dict[str, Tensor]:
    return {**tokens(seed, samples), "decoder_input_ids": tokens(seed + 1000, samples)["input_ids"]}


def numbers(*shape: int, name: str = "") -> Callable[[int, int], Any]:
    def batch(seed: int, samples: int) -> Any:
        found = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed))
        return {name: found} if name else found

    return batch


def transformers(model: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    """Makes ``model(config(**sizes))``."""

    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()

    return make


DECODER = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
           "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip


class Attention(nn.Module):
    """A block around ``nn.MultiheadAttention``, whose query, key and value are one plain parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.up, self.down = nn.Linear(64, 160), nn.Linear(160, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(x)))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)).eval()


def whisper(seed: int, samples: int) -> dict[str, Tensor]:
    sound = numbers(16, 40, name="input_features")(seed, samples)
    return {**sound, "decoder_input_ids": tokens(seed, samples)["input_ids"]}


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        transformers("BertModel", "BertConfig", **DECODER),
        masked,
    ),
    "gpt2": Architecture(
        transformers("GPT2LMHeadModel", "GPT2Config", vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64),
        masked,
    ),
    "llama": Architecture(
        transformers("LlamaForCausalLM", "LlamaConfig", **DECODER, num_key_value_heads=2, tie_word_embeddings=True),
        masked,
    ),
    "qwen2": Architecture(
        transformers("Qwen2ForCausalLM", "Qwen2Config", **DECODER, num_key_value_heads=2),
        masked,
    ),
    "t5": Architecture(
        transformers(
            "T5ForConditionalGeneration", "T5Config", vocab_size=96, d_model=64, d_kv=16, d_ff=160, num_layers=2,
            num_decoder_layers=2, num_heads=4, decoder_start_token_id=0,
        ),
        sequences,
    ),
    "vit": Architecture(
        transformers(
            "ViTForImageClassification", "ViTConfig", hidden_size=64, intermediate_size=160, num_hidden_layers=2,
            num_attention_heads=4, image_size=32, patch_size=8,
        ),
        numbers(3, 32, 32, name="pixel_values"),
    ),
    "whisper": Architecture(
        transformers(
            "WhisperForConditionalGeneration", "WhisperConfig", vocab_size=96, num_mel_bins=16, d_model=64,
            encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=160, decoder_ffn_dim=160, max_source_positions=20, max_target_positions=32,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        whisper,
    ),
    "mixtral": Architecture(
        transformers(
            "MixtralForCausalLM", "MixtralConfig", **DECODER, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=2,
        ),
        masked,
    ),
    "mamba": Architecture(
        transformers("MambaForCausalLM", "MambaConfig", vocab_size=96, hidden_size=64, num_hidden_layers=2,
                     state_size=8, expand=2),
        tokens,
    ),
    "multihead attention": Architecture(lambda: Attention().eval(), numbers(12, 64)),
    "resnet": Architecture(
        transformers(
            "ResNetForImageClassification", "ResNetConfig", embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2],
            layer_type="basic", num_labels=10,
        ),
        numbers(3, 32, 32, name="pixel_values"),
    ),
    "mobilenet": Architecture(
        transformers("MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.25, image_size=32,
                     num_labels=10),
        numbers(3, 32, 32, name="pixel_values"),
    ),
    "perceptron": Architecture(perceptron, numbers(48)),
}  # fmt: skip


def made(name: str, seed: int = 0) -> nn.Module:
    """The model of this name: the same random weights for the same seed; statistics of batch norms are not trivial."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[name].make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                assert module.running_mean is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model

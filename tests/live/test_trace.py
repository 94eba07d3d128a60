"""Blocks along the depth: where everything must pass, what is a residual, where signals start."""

import pytest
import torch
from torch import nn

from netspectra.errors import InputRefused
from netspectra.live.conditions import plain_kernels, widened
from netspectra.live.trace import traced
from netspectra.live.untouched import untouched
from tests.live.networks import NETWORKS, First, Residual, network, tiny_gpt


def blocks_of(model, batch, **options):
    with untouched(model), plain_kernels():
        trace = traced(model, batch, **options)
        return trace, [(block.name, block.residual) for block in trace.blocks]


def test_plain_networks_are_cut_at_every_weight():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 8), nn.LayerNorm(8))
    _, found = blocks_of(model, torch.randn(2, 6))
    assert found == [("0", False), ("3", False)]


def test_pooling_stands_by_itself():
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    assert [name for name, _ in blocks_of(model, torch.randn(2, 2, 9))[1]] == ["0", "2 + 3", "4"]


@pytest.mark.parametrize("first", [True, False])
def test_transformers_are_cut_at_their_stream(first):
    name = "attention" if first else "attention, norm last"
    trace, found = blocks_of(*network(name))
    residual = [name for name, around in found if around]
    assert residual == [
        "layers.0.self_attn",
        "layers.0.linear1 + layers.0.linear2",
        "layers.1.self_attn",
        "layers.1.linear1 + layers.1.linear2",
    ]
    assert len(found) == (4 if first else 8)
    assert all(block.source.shape == block.target.shape for block in trace.blocks)


def test_a_chain_of_blocks_is_the_whole():
    """The product of the blocks' Jacobians is the end-to-end Jacobian: no path leads around a block."""
    from netspectra.linalg.algebra import dense
    from netspectra.live.jacobian import Jacobian

    for name in ("tanh", "attention", "residual", "convolutions"):
        model, x = network(name, samples=1)
        with untouched(model), plain_kernels():
            trace = traced(model, x)
            product = torch.eye(trace.start.numel())
            for block in trace.blocks:
                product = dense(Jacobian(block.source, block.target)) @ product
            whole = dense(Jacobian(trace.start, trace.output))
        assert torch.allclose(product, whole, atol=1e-5 * float(whole.abs().max())), name


def test_paths_around_a_module_are_part_of_its_block():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(torch.cat([torch.tanh(self.a(x)), x], 1))

    assert blocks_of(Around(), torch.randn(2, 4))[1] == [("a", False), ("b", False)]  # what b receives holds all
    assert len(blocks_of(*network("loop"))[1]) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_are_found_independent(name):
    model, x = network(name)
    assert blocks_of(model, x)[0].samples == 3


def test_samples_that_meet_are_one():
    class Meet(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    assert blocks_of(Meet(), torch.randn(4, 3))[0].samples == 1
    assert blocks_of(First(nn.LSTM(3, 4)), torch.randn(5, 2, 3))[0].samples == 1  # time first


def test_integers_start_at_the_embedding_that_reads_them():
    ids = torch.randint(40, (2, 6))
    trace, found = blocks_of(tiny_gpt(), {"input_ids": ids, "attention_mask": torch.ones(2, 6)})
    assert trace.origin == "output of transformer.wte" and not trace.given
    assert trace.start.shape == (2, 6, 16) and trace.unit == pytest.approx(0.02, rel=0.2)
    assert float(trace.start.detach().square().mean()) == pytest.approx(1, rel=1e-5)
    assert [name for name, _ in found] == [
        "transformer.h.0.attn",
        "transformer.h.0.mlp",
        "transformer.h.1.attn",
        "transformer.h.1.mlp",
        "transformer.ln_f",
        "lm_head",
    ]


def test_a_copy_of_the_integers_is_no_obstacle():
    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return {"logits": self.head(self.table(ids + 1))}

    trace, _ = blocks_of(Copies(), torch.randint(8, (2, 3)))
    assert trace.origin == "output of table"


def test_a_start_can_be_named():
    model, x = network("tanh")
    trace, found = blocks_of(model, x, start="3")
    assert trace.origin == "output of 3" and [name for name, _ in found] == ["4", "6"]
    with pytest.raises(InputRefused, match="no submodule 'nowhere'"):
        blocks_of(model, x, start="nowhere")


def test_what_cannot_be_followed_is_refused():
    class Deaf(nn.Module):
        def forward(self, x):
            return torch.ones(2, 2) * x.detach()

    class Floats(nn.Module):
        def forward(self, ids):
            return ids.float()

    with pytest.raises(InputRefused, match="does not depend"):
        blocks_of(Deaf(), torch.randn(2, 2))
    with pytest.raises(InputRefused, match="no embedding"):
        blocks_of(Floats(), torch.arange(3))


def test_the_model_can_be_run_again_from_another_start():
    for model, batch in ((network("residual")), (tiny_gpt(), torch.randint(40, (2, 4)))):
        with untouched(model), plain_kernels():
            trace = traced(model, batch)
            assert torch.allclose(trace.rerun(trace.start), trace.output, atol=1e-6)
            assert not torch.allclose(trace.rerun(2 * trace.start), trace.output, atol=1e-3)


def test_half_precision_is_measured_on_a_wide_copy():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).to(torch.bfloat16)
    wide, batch, notes = widened(model, (torch.randn(2, 4, dtype=torch.bfloat16), torch.arange(2)))
    assert wide is not model and next(wide.parameters()).dtype == torch.float32
    assert batch[0].dtype == torch.float32 and batch[1].dtype == torch.int64 and "bfloat16" in notes[0]
    same, _, none = widened(nn.Linear(2, 2), torch.zeros(1, 2))
    assert isinstance(same, nn.Linear) and none == ()


def test_complex_inputs_and_outputs_count_as_pairs():
    class Rotate(nn.Module):
        def forward(self, z):
            return z * 2j

    trace, _ = blocks_of(Rotate(), torch.randn(2, 3, dtype=torch.complex64))
    assert trace.start.shape == (2, 3, 2) and trace.output.shape == (2, 3, 2)


def test_residuals_behind_activations_and_norms_are_seen():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return torch.relu(self.norm(self.conv(x)) + x)

    _, found = blocks_of(nn.Sequential(nn.Conv2d(3, 3, 1), Block(), Block()), torch.randn(2, 3, 4, 4))
    assert [around for _, around in found] == [False, True, True]
    linear = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    assert not any(around for _, around in blocks_of(linear, torch.randn(2, 3))[1])
    assert all(around for _, around in blocks_of(nn.Sequential(Residual(3), Residual(3)), torch.randn(2, 3))[1])

"""Distillation: ranks are those of the data, students start as their teacher's best fit, nothing else is touched."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.linalg.groups import group_order
from netspectra.linalg.neurons import neuron_order
from netspectra.linalg.similarity import debiased_cka, principal_cosines, procrustes
from netspectra.live.matching import SubspaceLoss
from netspectra.verbs.distill.student import best_layers, shallower, share_of, shrunk_copy, stacks
from netspectra.verbs.distill.training import train


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5)).eval()


def data(n=6, size=64, d=12):
    return list(torch.randn(n, size, d, generator=draws(1)))


class Block(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Residual(nn.Module):
    def __init__(self, depth=4, d=16):
        super().__init__()
        self.layers = nn.ModuleList([Block(d) for _ in range(depth)])
        self.head = nn.Linear(d, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


# ---- expressivity ----------------------------------------------------------------------------------------------------


def test_use_is_that_of_a_prescribed_covariance():
    torch.manual_seed(0)
    layer = nn.Linear(20, 30)
    basis = torch.linalg.qr(torch.randn(20, 20)).Q
    scales = torch.tensor([4.0, 3.0, 2.0, 1.0, *[0.0] * 16])
    batches = [torch.randn(500, 20) * scales @ basis.mT + 3.0 for _ in range(4)]
    found = ns.expressivity(nn.Sequential(layer), batches)["0"]
    x = torch.cat(batches).double()
    x = x - x.mean(0)
    s = torch.linalg.svdvals(x)
    p = (s / s.sum())[:4]
    assert float(found.inputs.effective_rank) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-2)
    energy = torch.linalg.svdvals(x @ layer.weight.double().mT).square()
    assert float(found.used.k90) == int((energy.cumsum(0) < 0.9 * energy.sum()).sum()) + 1
    plain = torch.linalg.svdvals(layer.weight.double()).square()
    assert float(found.plain.k90) == int((plain.cumsum(0) < 0.9 * plain.sum()).sum()) + 1 > float(found.used.k90)
    assert found.enough


def test_intervals_cover_the_truth():
    """Of 40 draws of 200 correlated samples, 95 % intervals cover the population's rank about that often."""
    scales = 1.0 / torch.arange(1, 9)
    p = scales / scales.sum()
    truth = float((-(p * p.log()).sum()).exp())
    model, hit = nn.Sequential(nn.Linear(8, 4)), 0
    for seed in range(40):
        draw = draws(seed)
        shared = torch.randn(200, 1, 8, generator=draw) * 0.7
        tokens = (shared + torch.randn(200, 5, 8, generator=draw) * 0.51**0.5) * scales
        use = ns.expressivity(model, tokens.split(50)).layers[0].inputs.effective_rank
        hit += use.low <= truth <= use.high
    assert 31 <= hit <= 40


def test_models_and_random_state_come_back_untouched():
    model = mlp().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = ns.distill(model, data())
    found.student(0.5)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_few_inputs_are_said_to_be_few():
    found = ns.expressivity(nn.Sequential(nn.Linear(64, 8)), [torch.randn(20, 64)])
    assert "fewer than ten" in found.notes[0] and "underestimated" in found.notes[0]


def test_results_are_strict_json_and_inert_pages(tmp_path):
    found = ns.distill(mlp(), data())
    again = ns.distill(mlp(), data())
    assert found.to_json() == again.to_json()
    found.save(tmp_path / "x.html")
    found.save(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["verb"] == "distill"
    assert "default-src 'none'" in (tmp_path / "x.html").read_text()
    assert (tmp_path / "x.html").read_text().count('"type":"category"') == 3  # layers called 0, 2, 4 are no numbers
    assert "for 1 %" in str(found) and found._repr_html_()
    with pytest.raises(InputRefused):
        found.save(tmp_path / "x.pdf")


def test_refusals():
    with pytest.raises(InputRefused, match="no batch"):
        ns.distill(mlp(), [])
    with pytest.raises(InputRefused, match="no layer is left"):
        ns.expressivity(mlp(), data(), include="nothing.*")
    found = ns.distill(mlp(), data())
    with pytest.raises(InputRefused, match="is not a layer"):
        found.student({"7": 3})
    with pytest.raises(InputRefused, match="cannot keep"):
        found.student({"0": 400})
    with pytest.raises(InputRefused, match="does not follow"):
        found.state_dict(nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 6)))


# ---- students --------------------------------------------------------------------------------------------------------


def test_repeated_neurons_cost_nothing():
    """A teacher whose 40 neurons are 10, each four times: the student of 10 computes the same."""
    teacher = mlp()
    with torch.no_grad():
        for place in (0, 2):
            teacher[place].weight.copy_(teacher[place].weight[:10].repeat(4, 1))
            teacher[place].bias.copy_(teacher[place].bias[:10].repeat(4))
    batches = data()
    found = ns.distill(teacher, batches)
    assert all(w.suggested <= 10 for w in found.widths)
    student = found.student({"0": 10, "2": 10})
    assert student[2].weight.shape == (10, 10)
    with torch.no_grad():
        assert torch.allclose(student(batches[0]), teacher(batches[0]), atol=2e-2)


def test_widths_have_intervals_that_hold_the_truth():
    teacher = mlp()
    scales = torch.logspace(0, -1.5, 12)

    def drawn(seed, count, size=40):
        return [size_ * scales for size_ in torch.randn(count, size, 12, generator=draws(seed))]

    truth = {one.name: one for one in ns.distill(teacher, drawn(0, 40)).widths}
    held, wide = [], []
    for seed in range(1, 7):
        found = ns.distill(teacher, drawn(seed, 8))
        for one in found.widths:
            for mine, true in ((one.suggested, truth[one.name].suggested), (one.tenth, truth[one.name].tenth)):
                assert 1 <= mine.low <= mine <= mine.high <= 40
                held.append(mine.low <= true <= mine.high)
                wide.append(mine.high - mine.low)
    assert np.mean(held) >= 0.8 and np.mean(wide) < 6
    again = ns.distill(teacher, drawn(6, 8))
    assert [one.to_dict() for one in found.widths] == [one.to_dict() for one in again.widths]
    few = ns.distill(teacher, [torch.randn(5, 12, generator=draws(3))])
    assert all(one.suggested.low is None for one in few.widths)


def test_refitted_output_is_the_least_squares_fit():
    teacher, batches = mlp(), data()
    student = shrunk_copy(teacher, batches, {"2": 12})
    x = torch.cat(batches)
    with torch.no_grad():
        hidden = student[:4](x).double()
        wanted = teacher(x).double()
        ones = torch.cat([hidden, torch.ones(len(x), 1)], 1)
        best = wanted - ones @ torch.linalg.lstsq(ones, wanted).solution
        mine = wanted - student(x).double()
    assert float(mine.square().sum()) <= 1.01 * float(best.square().sum())


def test_readers_are_fitted_to_what_the_student_makes():
    """Both hidden layers are narrower: the last must know what those before it could not keep."""
    teacher, batches = mlp(), data()
    x = torch.cat(batches)
    student = shrunk_copy(teacher, batches, share_of(0.2))
    with torch.no_grad():
        wanted = teacher(x).double()
        ones = torch.cat([student[:4](x), torch.ones(len(x), 1)], 1).double()
        best = wanted - ones @ torch.linalg.lstsq(ones, wanted).solution
        mine = wanted - student(x)
    assert float(mine.square().sum()) <= 1.02 * float(best.square().sum())


def test_batch_norms_start_with_the_students_statistics():
    """Else the first step of training, which normalizes by the batch, would undo the start."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )  # fmt: skip
    batches = list(torch.randn(4, 64, 1, 8, 8, generator=draws(2)))
    x = torch.cat(batches)
    with torch.no_grad():
        teacher[3].momentum = None
        teacher(x)  # statistics of the data
        nn.init.normal_(teacher[3].bias)
    student = shrunk_copy(teacher.eval(), batches, share_of(0.25))
    with torch.no_grad():
        before = student(x)
        assert float((student.train()(x) - before).norm()) < 1e-3 * float(before.norm())
    cut = shrunk_copy(teacher, batches, share_of(0.25), refit=False)
    with torch.no_grad():
        before = cut(x)
        assert float((cut.train()(x) - before).norm()) > 0.1 * float(before.norm())


def test_forward_selection_beats_random_selection():
    teacher, batches = mlp(), data()
    x = torch.cat(batches)

    def error(**how):
        student = shrunk_copy(teacher, batches, share_of(0.2), **how)
        with torch.no_grad():
            return float((student(x) - teacher(x)).square().sum())

    random = np.median([error(select="random", seed=seed) for seed in range(7)])
    cut = error(refit=False)
    assert error() < 0.9 * random and error() < 0.5 * cut


@pytest.mark.parametrize("flat", [True, False])
def test_convolutions_lose_channels_with_their_norms(flat):
    torch.manual_seed(0)
    tail = [nn.Flatten(), nn.Linear(12 * 16, 3)] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)]
    teacher = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), *tail,
    ).eval()  # fmt: skip
    with torch.no_grad():  # every other channel is a copy
        teacher[0].weight[1::2] = teacher[0].weight[::2]
        teacher[0].bias[1::2] = teacher[0].bias[::2]
        teacher[3].weight[1::2] = teacher[3].weight[::2]
        teacher[3].bias[1::2] = teacher[3].bias[::2]
    batches = list(torch.randn(4, 32, 1, 8, 8, generator=draws(2)))
    found = ns.distill(teacher, batches)
    assert [(w.name, w.kind, w.width) for w in found.widths] == [("0", "channels", 8), ("3", "channels", 12)]
    student = found.student(0.5)
    assert student[0].out_channels == 4 and student[1].num_features == 4 and student[3].weight.shape[:2] == (6, 4)
    with torch.no_grad():
        assert torch.allclose(student(batches[0]), teacher(batches[0]), atol=5e-3)


def test_layers_that_do_nothing_go_first():
    torch.manual_seed(0)
    teacher = Residual().eval()
    with torch.no_grad():
        for idle in (1, 2):
            teacher.layers[idle].down.weight.zero_()
            teacher.layers[idle].down.bias.zero_()
    batches = data(d=16)
    found = ns.distill(teacher, batches)
    student = found.student(1.0, depth=2)
    assert list(stacks(teacher)) == ["layers"] and len(student.layers) == 2 and len(teacher.layers) == 4
    with torch.no_grad():
        assert torch.allclose(student(batches[0]), teacher(batches[0]), atol=1e-6)
    mine = Residual(depth=2).eval()
    mine.load_state_dict(found.state_dict(mine))
    with torch.no_grad():
        assert torch.allclose(mine(batches[0]), teacher(batches[0]), atol=1e-6)


def test_state_dict_for_a_class_of_ones_own():
    teacher, batches = Residual().eval(), data(d=16)
    found = ns.distill(teacher, batches)

    class Mine(Residual):
        def __init__(self):
            super().__init__(depth=3)
            for layer in self.layers:
                layer.up, layer.down = nn.Linear(16, 20), nn.Linear(20, 16)

    mine = Mine().eval()
    mine.load_state_dict(found.state_dict(mine, kept={"layers": (0, 1, 3)}))
    direct = found.student({f"layers.{i}.up": 20 for i in range(3)}, depth={"layers": (0, 1, 3)})
    with torch.no_grad():
        assert torch.allclose(mine(batches[0]), direct(batches[0]), atol=1e-6)


def test_shallower_shares_numbers_and_leaves_the_teacher():
    teacher = Residual().eval()
    less = shallower(teacher, "layers", (0, 3))
    assert less.layers[1].up.weight is teacher.layers[3].up.weight and len(teacher.layers) == 4


def test_heads_are_chosen_whole():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=48)  # fmt: skip
    teacher = transformers.BertModel(config).eval()
    batches = [{"input_ids": torch.randint(0, 50, (8, 10), generator=draws(i))} for i in range(4)]
    found = ns.distill(teacher, batches)
    assert {(w.kind, w.width) for w in found.widths} == {("heads", 4), ("neurons", 48)}
    student = found.student(0.5, heads=0.5)
    attention = student.encoder.layer[0].attention
    assert attention.self.query.weight.shape == (16, 32) and attention.output.dense.weight.shape == (32, 16)
    rows = teacher.encoder.layer[0].attention.self.query.weight
    kept = [next(h for h in range(4) if torch.equal(attention.self.query.weight[8 * i], rows[8 * h])) for i in (0, 1)]
    assert kept == sorted(kept)


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_learns_and_is_repeatable():
    teacher, batches = mlp(), data()
    runs = []
    for _ in range(2):
        student = shrunk_copy(teacher, batches, share_of(0.2))
        losses = train(student, teacher, batches, steps=60, rate=1e-2)
        runs.append(losses)
    assert runs[0] == runs[1]
    assert np.mean(runs[0][-10:]) < 0.7 * np.mean(runs[0][:5])


def test_matching_is_trained_along():
    teacher, batches = mlp(), data()
    found = ns.distill(teacher, batches)
    student = found.student(0.2)
    matches = found.loss(student, [("2", "2")])
    before = copy.deepcopy(next(iter(matches.values())).read.weight)
    losses = found.train(student, steps=120, rate=3e-3, matches=matches)
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) and not torch.equal(
        before, next(iter(matches.values())).read.weight
    )
    with pytest.raises(InputRefused, match="pairs"):
        found.loss(student, [])


def test_subspace_loss_ignores_what_the_teacher_does_not_use():
    draw = draws()
    code = torch.randn(300, 3, generator=draw)
    teacher = code @ torch.randn(3, 20, generator=draw) + 1e-3 * torch.randn(300, 20, generator=draw)
    match = SubspaceLoss(teacher, 6)
    assert len(match.basis) == 3
    student = torch.cat([code, torch.randn(300, 3, generator=draw)], 1)
    zero = float(match(student, teacher).detach())
    assert (
        zero == pytest.approx(1.0, abs=1e-3) and float(match.fit_(student, teacher)(student, teacher).detach()) < 1e-4
    )
    keep = torch.zeros(300, dtype=torch.bool)
    keep[:40] = True
    assert float(match(student, teacher, keep).detach()) < 1e-3


# ---- linear algebra --------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=40)
def test_group_losses_are_those_of_the_refits(count, size, m, seed, pivoted):
    draw = draws(seed)
    n = count * size
    x = torch.randn(3 * n, n, generator=draw).double()
    H, W = x.mT @ x / len(x), torch.randn(m, n, generator=draw).double()
    found = group_order(W, H, size, rule="pivoted" if pivoted else "forward")
    assert sorted(found.order.tolist()) == list(range(count))
    assert (np.diff(found.losses) <= 1e-9).all()
    for k in range(count + 1):
        J = found.features(k)
        D = W.clone()
        D[:, J] -= found.refit(k)[1]
        assert float(((D @ H) * D).sum()) == pytest.approx(found.losses[k], abs=1e-8 * found.losses[0])


def test_forward_takes_the_best_next_group():
    x = torch.randn(60, 12, generator=draws()).double() @ torch.randn(12, 12, generator=draws(3)).double()
    W, H = torch.randn(3, 12, generator=draws(1)).double(), x.mT @ x
    found = group_order(W, H, 3)

    def loss(groups):
        J = torch.cat([torch.arange(3 * g, 3 * g + 3) for g in groups])
        D = W - torch.linalg.solve(H[J][:, J], H[J] @ W.mT).mT @ torch.eye(12, dtype=W.dtype)[J]
        return float(((D @ H) * D).sum())

    first = min(range(4), key=lambda g: loss([g]))
    second = min((g for g in range(4) if g != first), key=lambda g: loss([first, g]))
    assert found.order[:2].tolist() == [first, second]


def test_pivoted_groups_of_one_are_neurons():
    x = torch.randn(60, 9, generator=draws()).double()
    W = torch.randn(4, 9, generator=draws(1)).double()
    H = x.mT @ x
    assert torch.equal(group_order(W, H, 1, rule="pivoted").order, neuron_order(W, H).order)
    with pytest.raises(ValueError, match="groups"):
        group_order(W, H, 2)


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_similarities_do_not_see_rotation_scale_and_shift(seed):
    draw = draws(seed)
    X, Y = torch.randn(40, 6, generator=draw).double(), torch.randn(40, 9, generator=draw).double()
    Q = torch.linalg.qr(torch.randn(9, 9, generator=draw).double()).Q
    Z = 3 * Y @ Q + 2
    assert debiased_cka(X, Z) == pytest.approx(debiased_cka(X, Y), abs=1e-9)
    assert procrustes(X, Z) == pytest.approx(procrustes(X, Y), abs=1e-9)
    assert torch.allclose(principal_cosines(X, Z, 4), principal_cosines(X, Y, 4), atol=1e-9)
    assert procrustes(Y, Z) == pytest.approx(1.0) and debiased_cka(Y, Z) == pytest.approx(1.0)


def test_debiased_cka_is_centred_where_the_plain_one_is_not():
    found = [debiased_cka(*torch.randn(2, 30, 500, generator=draws(seed))) for seed in range(60)]
    assert abs(np.mean(found)) < 0.02
    with pytest.raises(ValueError, match="4 samples"):
        debiased_cka(torch.ones(3, 2), torch.ones(3, 2))


def test_best_layers_keeps_order():
    teacher, batches = Residual().eval(), data(d=16)
    found = ns.distill(teacher, batches)
    from netspectra.verbs.compress.quality import HeldOut

    kept = best_layers(teacher, "layers", 3, HeldOut.of(teacher, batches[:1], found.objective))
    assert list(kept) == sorted(kept) and len(kept) == 3

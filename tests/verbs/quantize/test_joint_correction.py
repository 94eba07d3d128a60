"""Codes and correction that are made for one another: a weight that is nearly of low rank, and alternation."""

import pytest
import torch
from torch import nn

from netspectra.forms import FORMS
from netspectra.forms.codes import Coding
from netspectra.linalg.rounding import Grid, compensated
from netspectra.linalg.weighted import leading
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.planning import quantize

RANK = 8


def nearly_thin(share: float) -> torch.Tensor:
    """Rank 8 and noise; ``share`` of the squares are the thin part's."""
    g = torch.Generator().manual_seed(0)
    thin = torch.randn(96, RANK, generator=g) @ torch.randn(RANK, 64, generator=g)
    noise = torch.randn(96, 64, generator=g)
    return thin / thin.norm() * share**0.5 * 20 + noise / noise.norm() * (1 - share) ** 0.5 * 20


def site_of(W: torch.Tensor, **options):
    model = nn.Sequential(nn.Linear(64, 96, bias=False), nn.Tanh())
    with torch.no_grad():
        model[0].weight.copy_(W)
    g = torch.Generator().manual_seed(1)
    data = [torch.randn(64, 64, generator=g) * torch.linspace(0.2, 2, 64) / 8 for _ in range(6)]
    _, shop = quantize(model, QuantizeOptions(bits=12, group=32, levels=(4, 3), ranks=(0, RANK), **options), data)
    [site] = shop.sites.found
    return site


def losses(site, form="int3"):
    curve = FORMS[form].curve(site)
    return dict(zip(map(int, curve.sizes), map(float, curve.losses), strict=True))


def error_first(site) -> float:
    """The correction of codes that know nothing of it."""
    member = site.member
    coded = compensated(member.W, [Grid(3, 32)], member.A)[0].numbers()
    left, right, _, _ = leading(member.W - coded, member.A, member.G, RANK)
    return member.loss(coded + left @ right)


def test_what_a_correction_takes_away_need_not_fit_the_levels():
    site = site_of(nearly_thin(0.95))
    found = losses(site)
    assert found[RANK] < 0.3 * error_first(site) and found[RANK] < 0.1 * found[0]


def test_a_weight_of_full_rank_is_corrected_after_it_was_coded():
    site = site_of(nearly_thin(0.2))
    assert losses(site)[RANK] == pytest.approx(error_first(site), rel=1e-6)


def test_rounds_never_make_it_worse_and_leave_the_rest_alone():
    one, many = (losses(site_of(nearly_thin(0.2), rounds=rounds)) for rounds in (1, 4))
    assert many[0] == one[0] and many[RANK] < one[RANK]


@pytest.mark.parametrize("share", [0.2, 0.95])
@pytest.mark.parametrize("rank", [0, RANK])
def test_what_is_fitted_is_what_was_predicted(share, rank):
    site = site_of(nearly_thin(share), rounds=2)
    for form in ("int3", "int4"):
        [module] = FORMS[form].fit(site, rank).values()
        [spec] = FORMS[form].specs(site, rank).values()
        assert spec["rank"] == module.rank == rank
        assert site.member.loss(module.weight.detach().double()) == pytest.approx(losses(site, form)[rank], rel=0.02)
    assert Coding().rounds == 1

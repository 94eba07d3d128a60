"""Figures of findings: that what is drawn is what was measured."""

import numpy as np
import pytest
import torch

import netspectra as ns


def traces(figure, axis):
    return [trace for trace in figure.data if (trace.xaxis or "x") == axis]


def planted(m=120, n=200, spikes=3):
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w[:spikes] *= 8
    return w


def test_the_histogram_and_the_curve_of_noise_have_the_area_of_all_values():
    analysis = ns.analyze({"w": planted(spikes=0)})
    bars, curve, spikes = traces(analysis.plot("w", "reading"), "x")
    assert np.sum(bars.y) * bars.width == pytest.approx(1)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(1, abs=0.01)
    assert len(spikes.x) == 0
    assert max(curve.x) == pytest.approx(float(analysis["w"].metrics["mp_edge"]), rel=0.01)


def test_what_lies_beyond_the_picture_is_counted():
    analysis = ns.analyze({"w": planted()})
    figure = analysis.plot("w", "reading")
    bars, _, spikes = traces(figure, "x")
    values = analysis["w"].spectrum.values
    beyond = int(np.sum(values > 2.5 * float(analysis["w"].metrics["mp_edge"])))
    assert beyond > 0 and any(text.text.startswith(f"{beyond} more, up to") for text in figure.layout.annotations)
    assert np.sum(bars.y) * bars.width == pytest.approx(1 - beyond / len(values))
    assert len(spikes.x) + beyond == analysis["w"].metrics["spikes"]


def test_the_line_of_the_tail_is_the_fit():
    analysis = ns.analyze({"w": torch.diag(torch.arange(1, 401, dtype=torch.float64) ** -0.25)})
    alpha = analysis["w"].metrics["alpha"]
    figure = analysis.plot("w", "reading")
    line = traces(figure, "x2")[-1]
    start = alpha.detail["xmin"] / analysis["w"].spectrum.sigma_max ** 2
    share = alpha.detail["tail"] / 400
    assert line.x == pytest.approx((start, 1)) and line.y == pytest.approx((share, share * start ** (alpha - 1)))
    assert any(f"α = {alpha:.2f}" in text.text for text in figure.layout.annotations)


@pytest.mark.parametrize("w", [torch.zeros(4, 4), torch.eye(3), torch.ones(1, 5), torch.eye(40)])
def test_matrices_with_little_to_draw(w):
    assert ns.analyze({"w": w}).plot("w", "reading") is not None
    assert ns.analyze({"w": w}, metrics=["count"]).plot("w", "reading") is not None  # nothing to compare with


def test_a_metric_against_the_depth_has_its_intervals():
    weights = {f"layer.{i}.weight": planted(spikes=i) for i in range(3)}
    analysis = ns.analyze({**weights, "embed.weight": planted()})
    figure = analysis.plot(what="stable_rank")
    assert [trace.name for trace in figure.data] == ["linear", "embedding"]
    assert list(figure.data[0].y) == [float(analysis[name].metrics["stable_rank"]) for name in weights]
    bars = ns.analyze({"w": torch.diag(torch.arange(1, 401.0) ** -0.25)}).plot(what="alpha").data[0].error_y
    assert bars.array[0] > 0 and bars.arrayminus[0] > 0


def test_what_cannot_be_drawn_is_refused(tmp_path):
    analysis = ns.analyze({"a": planted(), "b": planted()})
    with pytest.raises(ns.InputRefused, match="no metric 'stable' was measured; there are count"):
        analysis.plot(what="stable")
    with pytest.raises(ns.InputRefused, match="one weight: name one of the 2"):
        analysis.plot(what="reading")
    analysis.plot("a", "reading", save=tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size > 1e6

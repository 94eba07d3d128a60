"""Does normalizing a critic help a GAN, and by which norm? Planar mixtures and digits."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from benchmarks.gan import digits, planar
from benchmarks.normalize.run import spread, told
from benchmarks.results import keep, table
from netspectra.figures import save_figure

HERE = Path(__file__).parent


def each(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run independent, seeded jobs, two at a time."""
    with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(function, *zip(*jobs, strict=True)))


def mixtures(quick: bool) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    steps, seeds = (300, range(2)) if quick else (planar.STEPS, range(5))
    data = {"ring of 8": planar.ring(), "grid of 25": planar.grid()}
    methods = (*planar.CONSTRAINTS, "WGAN-GP")
    jobs = [(data[name], method, seed, steps) for name in data for method in methods for seed in seeds]
    done = iter(each(planar.train, jobs))
    rows, pictures = [], {}
    for name in data:
        for method in methods:
            runs: list[planar.Outcome] = [next(done) for _ in seeds]
            pictures[f"{name}: {method}"] = runs[0].samples
            rows.append(
                {
                    "data": name,
                    "method": method,
                    "modes": [run.modes for run in runs],
                    "near": spread([run.near for run in runs]),
                    "used": spread([run.used for run in runs]),
                    "budget": spread([run.budget for run in runs]),
                    "scale": spread([run.scale for run in runs]),
                    "diverged": sum(run.diverged for run in runs),
                    "seconds": statistics.median(run.seconds for run in runs),
                }
            )
    return rows, pictures


def on_digits(quick: bool) -> list[dict[str, Any]]:
    steps, seeds = (100, range(2)) if quick else (digits.STEPS, range(5))
    judge = digits.judge()
    jobs = [(method, seed, judge, steps) for method in digits.CONSTRAINTS for seed in seeds]
    done = iter(each(digits.train, jobs))
    rows = []
    for method in digits.CONSTRAINTS:
        runs: list[digits.Outcome] = [next(done) for _ in seeds]
        rows.append(
            {
                "method": method,
                "classes": [run.classes for run in runs],
                "unevenness": spread([run.unevenness for run in runs]),
                "frechet": spread([run.frechet for run in runs]),
                "used": spread([run.used for run in runs]),
                "budget": spread([run.budget for run in runs]),
                "diverged": sum(run.diverged for run in runs),
                "seconds": statistics.median(run.seconds for run in runs),
            }
        )
    return rows


def scatter(pictures: dict[str, Tensor]) -> go.Figure:
    """The samples of the first seed, data in rows, methods in columns."""
    columns = len(pictures) // 2
    titles = [name.split(": ")[1] if place < columns else "" for place, name in enumerate(pictures)]
    figure = make_subplots(2, columns, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=0.04)
    for place, (name, points) in enumerate(pictures.items()):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        centres = planar.ring() if name.startswith("ring") else planar.grid()
        for cloud, marker in (
            (centres, {"size": 14, "color": "rgba(200,120,0,0.35)"}),
            (points, {"size": 2, "color": "#1f5fbf"}),
        ):
            figure.add_scatter(x=cloud[:, 0].tolist(), y=cloud[:, 1].tolist(), mode="markers", marker=marker, **where)
    figure.update_xaxes(range=[-3, 3], showticklabels=False)
    figure.update_yaxes(range=[-3, 3], showticklabels=False)
    figure.update_layout(width=230 * columns, height=500, showlegend=False, margin={"l": 5, "r": 5, "t": 30, "b": 5})
    return figure


def main(quick: bool = False) -> None:
    torch.set_num_threads(1)
    planar_rows, planar_pictures = mixtures(quick)
    digit_rows = on_digits(quick)
    page = "\n\n".join((*_planar_page(planar_rows), *_digits_page(digit_rows)))
    if quick:
        print(page)
        return
    save_figure(scatter(planar_pictures), HERE / "planar.png")
    keep(HERE, "Critics under a budget", {"planar": planar_rows, "digits": digit_rows}, page)


def _planar_page(rows: list[dict[str, Any]]) -> tuple[str, str, str]:
    head = ("data", "critic", "modes", "near", "used", "product of norms", "mean abs D", "diverged")
    lines = []
    for r in rows:
        numbers = (told(r["near"], 2), told(r["used"]), told(r["budget"]), told(r["scale"], 2), r["diverged"])
        lines.append((r["data"], r["method"], " ".join(map(str, r["modes"])), *numbers))
    return (
        "GANs on points of the plane: modes held of 5 seeds (a mode counts with a fifth of its share within three "
        "standard deviations), share of samples near a mode, largest Jacobian of the critic on data and samples, "
        f"product of its norms, mean |D| on data. {planar.STEPS} steps; critic and generator have 3 layers of width "
        f"{planar.WIDTH}; non-saturating logistic loss, but for WGAN-GP, with {planar.CRITIC_STEPS} critic steps.",
        table(head, lines),
        "![Samples of the first seed; data in orange](planar.png)",
    )


def _digits_page(rows: list[dict[str, Any]]) -> tuple[str, str]:
    head = ("critic", "classes", "unevenness", "Frechet", "used", "product of norms", "diverged")
    lines = []
    for r in rows:
        numbers = (told(r["unevenness"], 2), told(r["frechet"]), told(r["used"]), told(r["budget"]), r["diverged"])
        lines.append((r["method"], " ".join(map(str, r["classes"])), *numbers))
    return (
        f"GANs on the 8 x 8 digits ({digits.STEPS} steps): classes held of 5 seeds (2 % of the samples each), total "
        "variation of class shares from even, Frechet distance in a classifier's features (less is better).",
        table(head, lines),
    )

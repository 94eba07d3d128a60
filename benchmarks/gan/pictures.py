"""What the generators of the first seed made, as pictures."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.gan import planar

SIDE = 190  # pixels of one plot


def clouds(samples: dict[tuple[str, str], list[list[float]]], path: Path) -> None:
    """Points of the plane, data sets in rows, methods in columns, centres in orange."""
    planes, methods = (list(dict.fromkeys(key[i] for key in samples)) for i in (0, 1))
    figure = make_subplots(
        len(planes),
        len(methods),
        subplot_titles=methods,
        row_titles=planes,
        horizontal_spacing=0.01,
        vertical_spacing=0.02,
    )
    for (plane, method), points in samples.items():
        where = {"row": planes.index(plane) + 1, "col": methods.index(method) + 1}
        centres = (planar.ring() if plane.startswith("ring") else planar.grid()).tolist()
        for cloud, marker in (
            (centres, {"size": 12, "color": "rgba(213, 94, 0, 0.35)"}),
            (points, {"size": 2, "color": "#0072b2"}),
        ):
            x, y = zip(*cloud, strict=True)
            figure.add_scatter(x=x, y=y, mode="markers", marker=marker, **where)
    figure.update_xaxes(range=[-3, 3])
    figure.update_yaxes(range=[-3, 3])
    _write(figure, path, len(methods), len(planes))


def numerals(samples: dict[str, list[list[list[float]]]], path: Path) -> None:
    """The first 25 images of each method, side by side."""
    figure = make_subplots(1, len(samples), subplot_titles=list(samples), horizontal_spacing=0.02)
    for place, images in enumerate(samples.values(), 1):
        rows = [
            [pixel for image in images[5 * up : 5 * up + 5] for pixel in [*image[line], 1.0]]
            for up in range(5)
            for line in range(8)
        ]
        figure.add_heatmap(z=rows, zmin=-1, zmax=1, colorscale="gray_r", showscale=False, row=1, col=place)
    figure.update_yaxes(autorange="reversed")
    _write(figure, path, len(samples), 1)


def _write(figure: go.Figure, path: Path, columns: int, rows: int) -> None:
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_layout(
        template="plotly_white", showlegend=False, font_size=11, margin={"l": 5, "r": 25, "t": 30, "b": 5}
    )
    figure.write_image(path, width=SIDE * columns + 30, height=SIDE * rows + 35, scale=1.5)

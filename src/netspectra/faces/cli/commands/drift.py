"""``netspectra drift``: whether windows of data, or weights over a series of checkpoints, are still what they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import ASKED_TO_FAIL, HtmlOut, JsonOut, Quiet, app
from netspectra.faces.cli.output import export, tell_files, writable, write, write_json

if TYPE_CHECKING:
    from netspectra.doors.drift import DriftReference
    from netspectra.verbs.drift import Evidence, WindowDrift
    from netspectra.verbs.drift.series import Series

VERDICT = "drift"


@app.command(
    epilog="Examples: netspectra drift reference.parquet today.parquet --fail-on drift --html drift.html   |   "
    "netspectra drift reference.npz --save reference.safetensors, then netspectra drift reference.safetensors "
    "monday.npz tuesday.npz --sequential --state stream.safetensors --fail-on drift   |   "
    "netspectra drift approved.txt today.txt --model ./minilm   |   "
    "netspectra drift --series epoch*.safetensors --html series.html"
)
def drift(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="Rows that were fine (.csv, .parquet, .npz, ...), or a saved reference; with --series a checkpoint.",
            show_default=False,
        ),
    ],
    windows: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WINDOW...]", help="Rows to test, or more checkpoints, in order.", show_default=False),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the reference, to be named instead of its rows.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="False alarms: this share of windows, or of all watching ever.")] = 0.05,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Watch windows one after another; the error holds at any time.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --sequential: go on from here, and keep it for next time.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Run this model on texts or input tensors, and watch its activations."),
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="With --model: modules to watch, or output; repeatable.")
    ] = None,
    series: Annotated[
        bool, typer.Option("--series", help="Not rows but checkpoints or run files, in order: where weights changed.")
    ] = False,
    independent: Annotated[
        bool, typer.Option("--independent", help="With --series: each made on its own, not steps of one training.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only columns, arrays or weights whose name matches: glob, or re:REGEX."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out columns, arrays or weights that match.")
    ] = None,
    permutations: Annotated[int, typer.Option(min=19, help="Exchanges of rows for a p-value.")] = 499,
    directions: Annotated[int, typer.Option(min=1, help="Principal directions kept of a layer.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of split and exchanges.")] = 0,
    html: HtmlOut = None,
    json_out: JsonOut = None,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", metavar="drift", help="Exit with 3 when a window, or the stream, drifts.")
    ] = None,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Test whether windows of data, embeddings or activations still come from where a reference came from.

    With --series: where the spectra of weights changed over a series of checkpoints.
    """
    from netspectra.doors.drift import load_state, save_state

    if fail_on not in (None, VERDICT):
        raise InputRefused(f"--fail-on {fail_on}: there is {VERDICT}")
    if not 0 < alpha < 1:
        raise InputRefused("--alpha lies between 0 and 1")
    if series:
        if sequential or save or state or model or layers:
            raise InputRefused("--series looks at weights: no --sequential, --state, --save, --model or --layers")
        paths = [reference, *(windows or ())]
        _series(paths, independent, alpha, permutations, seed, include, exclude, html, json_out, fail_on, quiet)
        return
    if independent:
        raise InputRefused("--independent belongs to --series")
    if not windows and save is None:
        raise InputRefused("name a WINDOW to test, or --save FILE to keep the reference")
    if state is not None and not sequential:
        raise InputRefused("--state belongs to --sequential")
    writable(html, json_out, save, state)
    opener = _Opener(model, tuple(layers or ()), tuple(include or ()), tuple(exclude or ()))
    known = opener.reference(reference, directions, seed)
    if save is not None:
        known.save(save)
    if not quiet and not windows and json_out != "-":
        print(known)
    evidence: list[Evidence] = []
    found: list[WindowDrift] = []
    stream = known.sequential(alpha=alpha) if sequential else None
    if stream is not None and state is not None and state.exists():
        load_state(stream, state)
    for path in windows or ():
        rows = opener.rows(path)
        if stream is None:
            found.append(known.test(rows, alpha=alpha, permutations=permutations, name=path))
        else:
            evidence.append(stream.test(rows))
        if not quiet and "-" not in (html, json_out):
            _show(path, found[-1] if stream is None else evidence[-1])
    if stream is not None and state is not None:
        save_state(stream, state)
    _write(html, json_out, found, evidence)
    tell_files(save, state, html, json_out)
    if fail_on and (any(one.alarm for one in found) or (evidence and evidence[-1].alarm)):
        raise typer.Exit(ASKED_TO_FAIL)


def _series(
    paths: list[str],
    independent: bool,
    alpha: float,
    permutations: int,
    seed: int,
    include: list[str] | None,
    exclude: list[str] | None,
    html: str | None,
    json_out: str | None,
    fail_on: str | None,
    quiet: bool,
) -> None:
    """Where weights changed over checkpoints."""
    from netspectra.doors.series import change_points

    writable(html, json_out)
    found = change_points(
        *paths,
        kind="independent" if independent else "training",
        alpha=alpha,
        permutations=permutations,
        seed=seed,
        include=include or (),
        exclude=exclude or (),
    )
    export(found, html, json_out)
    if not quiet and "-" not in (html, json_out):
        _show("", found)
    tell_files(html, json_out)
    if fail_on and found.changes:
        raise typer.Exit(ASKED_TO_FAIL)


class _Opener:
    """Opens references and windows: rows of files, or batches for a model that is built once."""

    def __init__(
        self, model: str | None, layers: tuple[str, ...], include: tuple[str, ...], exclude: tuple[str, ...]
    ) -> None:
        from netspectra.weight import Selection

        if layers and model is None:
            raise InputRefused("--layers belongs to --model; --include and --exclude choose columns or arrays")
        if model is not None and (include or exclude):
            raise InputRefused("--include and --exclude choose columns or arrays; with --model there is --layers")
        self.layers, self.selection = layers, Selection(include, exclude)
        self.source: Any = None
        self.network: Any = None
        if model is not None:
            from netspectra.live.build import build
            from netspectra.sources import open as open_source

            self.source = open_source(model)
            self.network = build(self.source)

    def reference(self, path: str, directions: int, seed: int) -> DriftReference:
        """A saved one, or one made of the rows."""
        from netspectra.doors.drift import DriftReference, drift, is_reference

        if is_reference(path):
            return DriftReference.load(path, self.network)
        return drift(self.network, self.rows(path), layers=self.layers, directions=directions, seed=seed)

    def rows(self, path: str) -> Any:
        """What a window file holds."""
        if self.network is None:
            from netspectra.sources.tables import open_table

            return open_table(path, self.selection)
        return list(self._batches(path))

    def _batches(self, path: str) -> Iterator[Any]:
        from netspectra.live.samples import is_tensors, read_samples, tensor_batches, text_batches, tokenizer
        from netspectra.sources import open as open_source

        if is_tensors(path):
            yield from tensor_batches(open_source(path))
        else:
            yield from text_batches(read_samples(path), tokenizer(self.source), self.network)


def _show(path: str, one: WindowDrift | Evidence | Series) -> None:
    """Print one finding, its first line in the colour of its level."""
    from rich.text import Text

    from netspectra.faces.cli.table import STYLE, terminal

    out = terminal()
    first, *rest = str(one).splitlines()
    out.print(Text(f"{path}: {first}" if path else first, style=STYLE.get(one.verdict.level, "")), soft_wrap=True)
    for line in rest:
        out.print(Text(line), soft_wrap=True)


def _write(html: str | None, json_out: str | None, found: list[WindowDrift], evidence: list[Evidence]) -> None:
    from netspectra.verbs.drift.result import drift_page

    if html is not None:
        write(html, drift_page(found, evidence))
    if json_out is not None:
        document = {"windows": [one.to_dict() for one in found], "stream": [one.to_dict() for one in evidence]}
        write_json(json_out, document)
    if not (found or evidence):
        print("no window was tested", file=sys.stderr)

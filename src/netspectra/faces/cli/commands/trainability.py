"""``netspectra trainability``: whether signals pass a model that the user's own code builds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import ASKED_TO_FAIL, Device, FailOn, JsonOut, Quiet, app
from netspectra.faces.cli.output import export, tell_files, writable

if TYPE_CHECKING:
    from netspectra.verbs.train.findings import Trainability


@app.command(
    epilog="Examples: netspectra trainability my_package.models:make --input-shape 16,3,32,32 --html depth.html   |   "
    "netspectra trainability models:gpt --input-shape 4,64 --vocabulary 50257   |   "
    "netspectra trainability models:make --batch batch.npz --json - | jq .score"
)
def trainability(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:CALLABLE",
            help="What builds the model, called without arguments. This imports and runs your own code.",
            show_default=False,
        ),
    ],
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Inputs, samples first: .npy, .npz (names by keyword) or safetensors."),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="N,...", help="Instead of a file: standard normal numbers of this shape.")
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --input-shape: whole numbers below N, for tokens.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Most samples of the file that are used.")] = 16,
    start: Annotated[
        str, typer.Option(metavar="NAME", help="Submodule at whose output signals start.", show_default="the input")
    ] = "",
    probes: Annotated[int, typer.Option(metavar="N", min=2, help="Random vectors where norms are estimated.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the model's numbers, inputs and probes.")] = 0,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write the page with the depth profile (- for stdout).")
    ] = None,
    json_out: JsonOut = None,
    fail_on: FailOn = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Tell whether signals pass a deep network, and where along its depth they are lost or blow up."""
    writable(html, json_out)
    from netspectra.faces.cli.engine import check_device
    from netspectra.record import LEVELS
    from netspectra.verbs.train.rules import RULES

    known = [*(rule.name for rule in RULES), *LEVELS[1:]]
    for name in fail_on or ():
        if name not in known:
            raise InputRefused(f"--fail-on {name}: there are {', '.join(known)}")
    if (batch is None) == (input_shape is None):
        raise InputRefused("give either --batch FILE or --input-shape N,... (samples first)")
    check_device(device)
    found = _found(model, _inputs(batch, input_shape, vocabulary, samples, seed), start, probes, seed, device)
    export(found, html, json_out)
    if not quiet and "-" not in (html, json_out):
        _show(found)
    tell_files(html, json_out)
    hit = [v for v in found.verdicts if v.rule in (fail_on or ()) or v.level in (fail_on or ())]
    for verdict in hit:
        print(f"failing on {verdict.rule}: {verdict.message}", file=sys.stderr)
    if hit:
        raise typer.Exit(ASKED_TO_FAIL)


# What a model of the user's raises where it and the inputs do not fit; anything else is a bug of somebody's.
FAULTS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


def _found(name: str, inputs: Any, start: str, probes: int, seed: int, device: str | None) -> Trainability:
    """Build and measure; the seed also decides the numbers of a model that draws them when it is built."""
    import torch

    from netspectra.live.batches import call, moved
    from netspectra.live.build import factory
    from netspectra.live.untouched import untouched
    from netspectra.verbs.train.trainability import TrainabilityOptions, trainability

    torch.manual_seed(seed)
    make = factory(name, "")
    try:
        model = make()
        if not isinstance(model, torch.nn.Module):
            raise InputRefused(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
        if device is not None:
            model.to(device)
        with untouched(model), torch.no_grad():
            call(model, moved(inputs, device or "cpu"))
    except InputRefused:
        raise
    except FAULTS as wrong:
        line = (str(wrong).strip().splitlines() or ["no message"])[0][:200]
        raise InputRefused(f"{name}: the model raised {type(wrong).__name__} on these inputs: {line}") from None
    return trainability(model, inputs, TrainabilityOptions(start, probes=probes, seed=seed))


def _inputs(batch: str | None, shape: str | None, vocabulary: int | None, samples: int, seed: int) -> Any:
    """The batch of a file, or random numbers of a shape."""
    import torch

    if batch is not None:
        from netspectra.live.samples import tensor_batches
        from netspectra.sources import open as open_source

        return tensor_batches(open_source(batch), size=samples)[0]
    try:
        sizes = [int(size) for size in str(shape).split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InputRefused(f"--input-shape {shape}: give positive whole numbers, separated by commas, samples first")
    generator = torch.Generator().manual_seed(seed)
    if vocabulary is not None:
        return torch.randint(vocabulary, sizes, generator=generator)
    return torch.randn(sizes, generator=generator)


def _show(found: Trainability) -> None:
    """Print the table, verdicts in the colour of their level."""
    from rich.text import Text

    from netspectra.faces.cli.table import STYLE, terminal

    out = terminal()
    for line in str(found).splitlines():
        styles = [style for level, style in STYLE.items() if line.startswith(f"{level}: ")]
        out.print(Text(line, style="".join(styles)), soft_wrap=True)

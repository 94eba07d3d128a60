"""``netspectra quantize``: bits for every weight under a budget, and files that runtimes load."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from netspectra.checkpoint import refuse_foreign
from netspectra.errors import InputRefused
from netspectra.faces.cli.app import (
    Address,
    BatchSize,
    CalibrationFile,
    Engine,
    Exclude,
    HtmlOut,
    Include,
    JsonOut,
    LargestLoss,
    ModelFolder,
    ModelMaker,
    MomentsFile,
    Objective,
    PathArgument,
    PlanFile,
    PlanOnly,
    Quiet,
    Samples,
    Seed,
    Spread,
    Streaming,
    Tokens,
    app,
)
from netspectra.faces.cli.output import writable
from netspectra.faces.cli.planned import (
    in_one_process,
    must_land,
    opened,
    remembering,
    saved_moments,
    streamed,
    told,
    unwritten,
)
from netspectra.faces.cli.progress import sharing

EXAMPLES = (
    "Examples: netspectra quantize ./model --bits 4.25 --calibration texts.txt -o ./small; netspectra quantize "
    "./model --bits 3.5 --calibration texts.txt --plan plan.json --plan-only, edit plan.json, then the same with "
    "-o ./small and without --plan-only"
)


@app.command(epilog=EXAMPLES)
def quantize(
    path: PathArgument,
    bits: Annotated[
        float | None, typer.Option(help="Budget: bits a weight on average, all included.", show_default="4.25")
    ] = None,
    max_bytes: Annotated[float | None, typer.Option(help="Budget: bytes of the selected weights.")] = None,
    max_loss: LargestLoss = None,
    calibration: CalibrationFile = None,
    out: ModelFolder = None,
    plan: PlanFile = None,
    plan_only: PlanOnly = False,
    level: Annotated[
        list[int] | None, typer.Option(help="Bits a weight may get; repeatable.", show_default="16, 8, 6, 5, 4, 3, 2")
    ] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(help="Rank of a correction that may be kept; repeatable; 0: none.", show_default="0, 8, 16, 32"),
    ] = None,
    group: Annotated[
        int | None, typer.Option(min=0, help="Inputs that share a scale, at most; 0: a whole row.", show_default="64")
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="No zero points.")] = False,
    nearest: Annotated[bool, typer.Option("--nearest", help="Round to the nearest, without compensation.")] = False,
    weigh: Annotated[str, typer.Option(help="How bits are chosen: predicted, measured, weights (weak).")] = "predicted",
    form: Annotated[
        list[str] | None, typer.Option(help="A form of compress that may be chosen too, for joint plans; repeatable.")
    ] = None,
    objective: Objective = None,
    spread: Spread = None,
    model: ModelMaker = None,
    samples: Samples = 512,
    tokens: Tokens = 128,
    batch_size: BatchSize = 32,
    moments: MomentsFile = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="netspectra, torchao, compressed-tensors, gguf, dequantized; repeatable: then DIR/FORMAT each. gguf "
            "and compressed-tensors imply --symmetric; gguf also --group 32 --rank 0 and levels of 16, 8, 5, 4.",
            show_default="netspectra",
        ),
    ] = None,
    stream: Streaming = False,
    include: Include = None,
    exclude: Exclude = None,
    html: HtmlOut = None,
    json_out: JsonOut = None,
    seed: Seed = 0,
    engine: Engine = "local",
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Give every weight the bits it needs, so that the output changes least under a budget, and write the model."""
    from netspectra.plan import Plan
    from netspectra.verbs.quantize.emit import FORMATS, check, emit
    from netspectra.verbs.quantize.options import QuantizeOptions
    from netspectra.verbs.quantize.planning import quantize as quantizing

    kinds = tuple(dict.fromkeys(kind or ("netspectra",)))
    if wrong := [one for one in kinds if one not in FORMATS]:
        raise InputRefused(f"--format {wrong[0]}: there are {', '.join(FORMATS)}")
    levels, ranks, size = _suited(kinds, level, rank, group)
    options = QuantizeOptions(
        bits=bits,
        bytes=max_bytes,
        loss=max_loss,
        levels=levels,
        ranks=ranks,
        group=size,
        symmetric=symmetric or bool({"gguf", "compressed-tensors"} & set(kinds)),
        scales="float16" if "gguf" in kinds else None,
        rounding="nearest" if nearest else "compensated",
        weigh=weigh,  # type: ignore[arg-type]
        forms=tuple(form or ()),
        spread=spread,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        objective=objective,
        seed=seed,
    )
    given = Plan.load(plan) if plan is not None and plan.exists() else None
    options = options if given is None else options.following(given.options)
    must_land(out, plan, plan_only, html, json_out)
    new_plan = unwritten(plan)
    writable(html, json_out, new_plan, unwritten(moments))
    for one in kinds if out is not None else ():
        refuse_foreign(out if len(kinds) == 1 else out / one)  # type: ignore[operator]
    if stream:
        if calibration is not None or model is not None:
            raise InputRefused("--stream runs no model: no --calibration, --model; --moments may help")
        first, *others = kinds
        if others:
            raise InputRefused("--stream writes one format at a time; --plan FILE keeps what was decided for the next")
        from netspectra.sources import open as open_source
        from netspectra.verbs.quantize.streamed import quantize_stream

        known, to = saved_moments(moments), None if plan_only else out
        streamed(
            lambda run, progress: quantize_stream(
                open_source(path), to, options, first, calibration=known, plan=given, run=run, progress=progress
            ),
            engine, address, new_plan, html, json_out, quiet,
        )  # fmt: skip
        return
    in_one_process(engine, address)
    source, network, batches = opened(path, model, calibration, samples, tokens, batch_size)
    for one in kinds:
        check(network, one, options)
    with sharing(quiet=quiet) as progress:
        made = remembering(
            moments,
            lambda known: quantizing(network, options, batches, calibration=known, plan=given, progress=progress),
        )
        if not plan_only:
            made.apply(network)
    if new_plan is not None:
        made.save(new_plan)
    if not plan_only:
        for one in kinds:
            saved = emit(network, out if len(kinds) == 1 else out / one, one, plan=made, source=source)  # type: ignore[operator]
            made.finish.setdefault("saved", {})[one] = saved.to_dict()
            print(saved, *saved.notes, sep="\n  ", file=sys.stderr)
    told(made, html, json_out, new_plan, quiet)


def _suited(
    kinds: tuple[str, ...], level: list[int] | None, rank: list[int] | None, group: int | None
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Levels, ranks and group: as asked for, else what the formats can hold."""
    from netspectra.verbs.quantize.options import LEVELS

    gguf = "gguf" in kinds
    levels = tuple(level or ((16, 8, 5, 4) if gguf else LEVELS))
    ranks = tuple(sorted({0, *rank})) if rank is not None else (0,) if gguf else (0, 8, 16, 32)
    return levels, ranks, group if group is not None else 32 if gguf else 64

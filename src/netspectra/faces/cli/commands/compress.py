"""``netspectra compress``: plan under a budget, replace layers, write a model that loads again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from netspectra.checkpoint import refuse_foreign
from netspectra.errors import InputRefused
from netspectra.faces.cli.app import (
    Address,
    AffordableBatch,
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
    "Examples: netspectra compress ./model --keep 0.5 --calibration texts.txt -o ./smaller --html report.html; "
    "netspectra compress ./model --keep 0.5 --calibration texts.txt --plan plan.json --plan-only, edit plan.json, then "
    "the same with -o ./smaller and without --plan-only"
)


@app.command(epilog=EXAMPLES)
def compress(
    path: PathArgument,
    keep: Annotated[float | None, typer.Option(help="Share of the selected weights' parameters that stays.")] = None,
    max_parameters: Annotated[float | None, typer.Option(help="Budget: parameters of the selected weights.")] = None,
    max_bytes: Annotated[float | None, typer.Option(help="Budget: their bytes.")] = None,
    max_flops: Annotated[float | None, typer.Option(help="Budget: their multiplications a sample.")] = None,
    max_ms: Annotated[float | None, typer.Option(help="Budget: their measured milliseconds a batch.")] = None,
    max_loss: LargestLoss = None,
    calibration: CalibrationFile = None,
    out: ModelFolder = None,
    plan: PlanFile = None,
    plan_only: PlanOnly = False,
    portable: Annotated[bool, typer.Option("--portable", help="Only forms that load without netspectra.")] = False,
    heal: Annotated[
        bool, typer.Option("--heal", help="Distil a little; kept only if it helps on held-out data.")
    ] = False,
    heal_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of --heal.")] = 200,
    refit: Annotated[int, typer.Option(min=0, help="Sweeps of fitting layers anew behind compressed ones.")] = 0,
    method: Annotated[str | None, typer.Option(help="plain, asvd, whitened, fisher, two_sided.")] = None,
    form: Annotated[list[str] | None, typer.Option(help="Allow only this form; repeatable.")] = None,
    objective: Objective = None,
    spread: Spread = None,
    model: ModelMaker = None,
    samples: Samples = 512,
    tokens: Tokens = 128,
    batch_size: AffordableBatch = None,
    moments: MomentsFile = None,
    export: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also NAME.pt2 or NAME.onnx: runs without netspectra; repeatable."),
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
    """Shrink a model under a budget so that its output changes least, and write it."""
    from netspectra.plan import Plan
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.verbs.compress.planning import compress as compressing

    given = Plan.load(plan) if plan is not None and plan.exists() else None
    options = CompressOptions(
        keep=keep,
        parameters=max_parameters,
        bytes=max_bytes,
        flops=max_flops,
        milliseconds=max_ms,
        loss=max_loss,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        method=method,
        forms=tuple(form or ()),
        portable=portable,
        objective=objective,
        spread=spread,
        heal=heal_steps if heal else 0,
        refit=refit,
        timed=True if calibration is not None else None,
        seed=seed,
    )
    must_land(out, plan, plan_only, html, json_out)
    new_plan = unwritten(plan)
    writable(html, json_out, new_plan, unwritten(moments), *(export or ()))
    if out is not None:
        refuse_foreign(out)
    if export and (calibration is None or plan_only):
        raise InputRefused("--export records a call of the finished model on the first batch of --calibration FILE")
    if stream:
        if calibration is not None or model is not None or heal or refit:
            raise InputRefused(
                "--stream runs no model: no --calibration, --model, --heal or --refit; --moments may help"
            )
        from netspectra.sources import open as open_source
        from netspectra.verbs.compress.streamed import compress_stream

        known, to = saved_moments(moments), None if plan_only else out
        streamed(
            lambda run, progress: compress_stream(
                open_source(path), to, options, calibration=known, plan=given, run=run, progress=progress
            ),
            engine, address, new_plan, html, json_out, quiet,
        )  # fmt: skip
        return
    in_one_process(engine, address)
    source, network, batches = opened(path, model, calibration, samples, tokens, batch_size)
    with sharing(quiet=quiet) as progress:
        made = remembering(
            moments,
            lambda known: compressing(network, options, batches, calibration=known, plan=given, progress=progress),
        )
        if not plan_only:
            made.apply(network)
    if new_plan is not None:
        made.save(new_plan)
    if not plan_only:
        from netspectra.live.saved import save

        saved = save(network, str(out), source=source)
        made.finish["saved"] = saved.to_dict()
        print(saved, file=sys.stderr)
        for file in export or ():
            from netspectra.live.export import export as exported

            print(exported(network, file, (batches or [None])[0]), file=sys.stderr)
    told(made, html, json_out, new_plan, quiet)

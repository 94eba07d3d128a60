"""The main job: right numbers, the same bytes for any number of workers, and after any interruption."""

import copy
import json
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import netspectra as ns
from netspectra.analysis import Analysis, _rounded_up
from netspectra.record import Record, Skipped
from netspectra.run import local
from netspectra.run.cost import cores, working_set
from netspectra.run.local import LocalRun, serial
from netspectra.runfile import RunFile
from netspectra.verbs.analyze import AnalyzeOptions, job, measure
from tests.checkpoints import small_model, write_sharded, write_single


@pytest.fixture
def checkpoint(tmp_path):
    return write_sharded(tmp_path / "ckpt")


def test_every_value_agrees_with_lapack(checkpoint):
    tensors = small_model()
    analysis = ns.analyze(checkpoint, rank=(1, 5))
    assert len(analysis) == 1 + 3 * 6 + 1
    for record in analysis:
        name, _, part = record.name.partition("[")
        w = tensors[name].double().reshape(tensors[name].shape[0], -1)
        if part:
            w = w.chunk(3)["qkv".index(part[0])]
        reference = torch.linalg.svdvals(w).numpy()
        assert np.all(np.abs(record.spectrum.values - reference) <= record.spectrum.error + 1e-14 * reference[0])
        tail = np.sqrt((reference[5:] ** 2).sum() / (reference**2).sum())
        assert record.metrics["relative_error_5"] == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_same_bytes_for_any_number_of_workers(checkpoint, workers):
    assert ns.analyze(checkpoint, workers=workers).to_json() == ns.analyze(checkpoint, run=serial).to_json()


def test_the_budget_holds_back_large_weights():
    weights = ns.open({f"w{i}": torch.randn(64, 64) for i in range(6)}).weights
    budget = working_set(weights[0])
    at_once, most = 0, 0

    def watch(weight):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        at_once -= 1
        return weight.name

    found = list(LocalRun(workers=4, budget=budget)(watch, weights))
    assert most == 1 and sorted(name for _, name in found) == [w.name for w in weights]


def test_giants_run_alone_with_every_processor(monkeypatch):
    monkeypatch.setattr(local, "ALONE", 24 * 50**2)
    weights = ns.open({"big": torch.randn(64, 64), **{f"w{i}": torch.randn(8, 8) for i in range(4)}}).weights

    def look(weight):
        return torch.get_num_threads()

    for engine in (serial, LocalRun(workers=3)):
        found = {weight.name: count for weight, count in engine(look, weights)}
        assert found == {"big": cores(), **{f"w{i}": 1 for i in range(4)}}
    tensors = {"a": torch.randn(200, 150), "b": torch.randn(30, 20)}
    assert ns.analyze(tensors, workers=2).to_json() == ns.analyze(tensors, run=serial).to_json()


def test_an_error_of_the_function_ends_the_run():
    def broken(weight):
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        list(LocalRun(workers=2)(broken, ns.open(small_model()).weights))


def test_threads_are_given_back():
    before = torch.get_num_threads()
    ns.analyze(small_model())
    assert torch.get_num_threads() == before


def test_selection(checkpoint):
    names = [r.name for r in ns.analyze(checkpoint, include="*attn*", exclude=["re:layers\\.[12]"])]
    assert names == ["layers.0.attn.out_proj.weight", *(f"layers.0.attn.qkv.weight[{c}]" for c in "qkv")]
    with pytest.raises(ns.InputRefused, match="regular expression"):
        ns.analyze(checkpoint, include="re:(")


def test_weights_and_functions_travel(checkpoint):
    weight = ns.open(checkpoint).weights[0]
    there = pickle.loads(pickle.dumps(weight))
    options = AnalyzeOptions()
    one, two = measure(weight, options), measure(there, options)
    assert isinstance(one, Record) and isinstance(two, Record)
    assert np.array_equal(one.spectrum.values, two.spectrum.values)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        far = pool.apply(measure, (weight, options))
    assert np.array_equal(far.spectrum.values, one.spectrum.values)
    assert repr(far.metrics) == repr(one.metrics)  # NaN is not equal to itself


# ---- thorough ------------------------------------------------------------------------------------------------------


def with_tails():
    return {f"w{i}": torch.diag(torch.arange(1, 61).double() ** (-0.2 - 0.1 * i)) for i in range(3)}


def test_thorough_adds_what_costs_and_depends_on_the_seed_alone(tmp_path):
    plain = ns.analyze(with_tails())
    one = ns.analyze(with_tails(), thorough=True, seed=1, workers=1)
    again = ns.analyze(with_tails(), thorough=True, seed=1, workers=3, runfile=tmp_path / "t.run")
    other = ns.analyze(with_tails(), thorough=True, seed=2)
    assert one.to_json() == again.to_json() != other.to_json()
    assert Analysis.from_run(RunFile.read(tmp_path / "t.run")).to_json() == one.to_json()
    assert set(one.metric_names) - set(plain.metric_names) == {"farms_alpha", "twin_distance"}
    assert all(r.metrics["alpha"].detail["p"] is None for r in plain)
    known = [r.metrics["alpha"] for r in one if r.metrics["alpha"].known]
    assert known and all(0 <= alpha.detail["p"] <= 1 for alpha in known)
    [first] = ns.analyze(with_tails(), thorough=True, seed=1, include="w0", metrics=["alpha"])
    assert repr(first.metrics["alpha"].detail) == repr(one["w0"].metrics["alpha"].detail)  # whatever else is asked


PINNED = [
    *("count", "sigma_max", "sigma_min", "spectral_norm", "frobenius_norm", "nuclear_norm", "condition_number"),
    *("stable_rank", "effective_rank", "participation_ratio", "numerical_rank", "k50", "k90", "k99", "mp_edge"),
    *("spikes", "gavish_donoho_rank", "alpha", "hill_alpha", "farms_alpha", "alpha_hat", "log_alpha_norm"),
]


def test_pinned_metric_names_are_given():
    [weight] = ns.analyze({"w": torch.randn(50, 60)}, thorough=True).to_dict()["weights"]
    assert set(PINNED) <= set(weight["metrics"])
    assert {"value", "low", "high", "tail", "p"} <= set(weight["metrics"]["alpha"])
    assert all(isinstance(v, int | float | None) for name, v in weight["metrics"].items() if name != "alpha")
    assert {"edge", "strengths"} <= set(weight["details"]["spikes"])


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1.0, 1e150, 1e290])
def test_extreme_scales_change_no_finding(scale):
    w = torch.diag(torch.arange(1, 61).double() ** -0.3)
    here, there = (ns.analyze({"w": w * factor}, thorough=True)["w"] for factor in (1.0, scale))
    assert [v.rule for v in here.verdicts] == [v.rule for v in there.verdicts]
    for name in ("stable_rank", "alpha", "spikes", "farms_alpha", "twin_distance", "dead_units", "mp_distance", "k90"):
        assert there.metrics[name] == pytest.approx(float(here.metrics[name]), rel=1e-6), name
    assert there.metrics["frobenius_norm"] / scale == pytest.approx(float(here.metrics["frobenius_norm"]), rel=1e-12)


def test_a_grouped_convolution_has_no_bulk():
    [record] = ns.analyze(torch.nn.Conv2d(64, 64, 3, groups=4))
    assert "grouped" in record.metrics["spikes"].note and not record.metrics["dead_units"].known
    assert record.metrics["stable_rank"].known


# ---- run files -----------------------------------------------------------------------------------------------------


def test_run_file_round_trip(checkpoint, tmp_path):
    direct = ns.analyze(checkpoint, rank=2)
    kept = ns.analyze(checkpoint, rank=2, runfile=tmp_path / "job.run")
    read = Analysis.from_run(RunFile.read(tmp_path / "job.run"))
    assert direct.to_json() == kept.to_json() == read.to_json()
    assert direct.to_csv() == read.to_csv()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt", "job.run"]


def test_resuming_does_only_what_is_missing(checkpoint, tmp_path):
    class Stop(Exception):
        pass

    done = []

    def stop_after_five(weight):
        done.append(weight.name)
        if len(done) == 5:
            raise Stop

    with pytest.raises(Stop):
        ns.analyze(checkpoint, runfile=tmp_path / "job.run", progress=stop_after_five)
    kept = len(RunFile.read(tmp_path / "job.run").found())
    assert kept >= 5
    partial = Analysis.from_run(RunFile.read(tmp_path / "job.run"))
    assert partial.summary()["expected"] == 20 and len(partial) == kept

    computed = []

    def counting(function, weights):
        computed.extend(weight.name for weight in weights)
        return serial(function, weights)

    resumed = ns.analyze(checkpoint, runfile=tmp_path / "job.run", run=counting)
    assert len(computed) == 20 - kept
    assert resumed.to_json() == ns.analyze(checkpoint).to_json()


def change_input(folder):
    tensors = small_model()
    tensors["conv.weight"][0, 0, 0, 0] += 1
    write_sharded(folder, tensors)


def touch_one_byte(folder):
    path = folder / "model-00002-of-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("change", [change_input, touch_one_byte])
def test_resume_refuses_a_changed_input(checkpoint, tmp_path, change):
    ns.analyze(checkpoint, runfile=tmp_path / "job.run")
    time.sleep(0.01)
    change(checkpoint)
    with pytest.raises(ns.InputRefused, match="belongs to another job"):
        ns.analyze(checkpoint, runfile=tmp_path / "job.run")


@pytest.mark.parametrize(
    "changed",
    [
        *({"rank": 3}, {"accuracy": 1e-8}, {"include": "*attn*"}, {"metrics": ("count",)}, {"exclude": "conv*"}),
        *({"thorough": True}, {"seed": 1}),
    ],
)
def test_resume_refuses_changed_options(checkpoint, tmp_path, changed):
    ns.analyze(checkpoint, runfile=tmp_path / "job.run")
    with pytest.raises(ns.InputRefused, match=r"options\.\w+ was"):
        ns.analyze(checkpoint, runfile=tmp_path / "job.run", **changed)


def test_resume_refuses_another_version(checkpoint, tmp_path):
    ns.analyze(checkpoint, runfile=tmp_path / "job.run")
    source = ns.open(checkpoint)
    meta = {**job(source, AnalyzeOptions()), "version": "99"}
    with pytest.raises(ns.InputRefused, match="version"):
        RunFile.create_or_resume(tmp_path / "job.run", meta)


def test_what_is_no_run_file_is_refused(checkpoint, tmp_path):
    (tmp_path / "text.run").write_text("hello, this is not a database at all" * 10)
    with pytest.raises(ns.InputRefused, match="not a netspectra run file"):
        ns.analyze(checkpoint, runfile=tmp_path / "text.run")
    other = sqlite3.connect(tmp_path / "other.run")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    for use in (RunFile.read, lambda path: ns.analyze(checkpoint, runfile=path)):
        with pytest.raises(ns.InputRefused, match="not a netspectra run file"):
            use(tmp_path / "other.run")
    with pytest.raises(ns.InputRefused, match="no such run file"):
        RunFile.read(tmp_path / "none.run")


TELLING = """
import sys, time
import netspectra as ns
def tell(weight):
    print(weight.name, flush=True)
    time.sleep(0.02)
ns.analyze(sys.argv[1], runfile=sys.argv[2], progress=tell)
"""


def test_kill_in_the_middle_then_resume_exports_the_same_bytes(checkpoint, tmp_path):
    file = tmp_path / "job.run"
    kept = 0
    for more in (2, 3):
        command = [sys.executable, "-c", TELLING, str(checkpoint), str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(kept + more):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        before, kept = kept, len(RunFile.read(file).found())
        assert before + more <= kept < 20
    assert ns.analyze(checkpoint, runfile=file).to_json() == ns.analyze(checkpoint).to_json()


def test_two_writers_are_one_too_many(checkpoint, tmp_path):
    meta = job(ns.open(checkpoint), AnalyzeOptions())
    first = RunFile.create_or_resume(tmp_path / "job.run", meta)
    with pytest.raises(ns.EnvironmentFailure, match="another process is writing"):
        RunFile.create_or_resume(tmp_path / "job.run", meta)
    assert RunFile.read(tmp_path / "job.run").found() == {}
    first.close()
    RunFile.create_or_resume(tmp_path / "job.run", meta).close()
    with pytest.raises(ns.InputRefused, match="regular"):
        RunFile.create_or_resume(tmp_path, meta)


# ---- the result object ---------------------------------------------------------------------------------------------


def test_exports_are_strict_and_complete(tmp_path):
    tensors = {
        "fine": torch.diag(torch.tensor([2.0, 1.0])),
        "zero": torch.zeros(3, 3),
        "nan": torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]),
        "=cmd|' /C calc'!A0": torch.eye(2),
        "bias": torch.zeros(3),
    }
    analysis = ns.analyze(tensors)
    document = json.loads(analysis.to_json(), parse_constant=pytest.fail)
    assert document["schema"] == 1
    fine, zero, formula = document["weights"]
    assert fine["metrics"]["condition_number"] == 2 and fine["spectrum"]["values"] == [2.0, 1.0]
    assert zero["metrics"]["condition_number"] is None
    assert any("condition_number: the matrix is zero" in note for note in zero["notes"])
    assert zero["verdicts"][0]["rule"] == "zero" and zero["verdicts"][0]["level"] == "error"
    assert formula["name"] == "=cmd|' /C calc'!A0"
    assert [s["name"] for s in document["skipped"]] == ["bias", "nan"]
    assert document["summary"]["weights"] == 3 and document["summary"]["levels"]["error"] == 1
    assert "'=cmd" in analysis.to_csv()
    for suffix in (".json", ".csv", ".html"):
        analysis.save(tmp_path / f"out{suffix}")
        assert (tmp_path / f"out{suffix}").stat().st_size > 100
    with pytest.raises(ns.InputRefused, match=r"\.xlsx"):
        analysis.save(tmp_path / "out.xlsx")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    analysis = ns.analyze({"w": torch.eye(2)})
    target = tmp_path / "missing" / "out.json"
    with pytest.raises(ns.EnvironmentFailure, match="cannot be written"):
        analysis.save(target)
    assert not target.parent.exists()


def test_looking_things_up(checkpoint):
    analysis = ns.analyze(checkpoint)
    assert analysis[1] is analysis["embed_tokens.weight"]
    with pytest.raises(KeyError, match="near are"):
        analysis["layers.0.attn.out_proj.wieght"]
    assert "20 weights" in repr(analysis)
    assert "<table>" in analysis._repr_html_() and "<script" not in analysis._repr_html_()


def test_notebook_table_escapes_names():
    shown = ns.analyze({"<script>alert(1)</script>": torch.eye(2)})._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown


def test_pandas_and_plot(checkpoint, tmp_path):
    analysis = ns.analyze(checkpoint)
    frame = analysis.to_pandas()
    assert list(frame.index) == [r.name for r in analysis] and frame["stable_rank"].notna().all()
    figure = analysis.plot(["conv.weight"], save=tmp_path / "plot.html")
    assert len(figure.data) == 1 and (tmp_path / "plot.html").exists()
    with pytest.raises(ns.InputRefused, match="cannot draw"):
        analysis.plot(save=tmp_path / "plot.gif")


def test_record_from_a_file_says_why_it_has_no_factors(tmp_path):
    ns.analyze({"w": torch.eye(3)}, runfile=tmp_path / "a.run")
    [record] = Analysis.from_run(RunFile.read(tmp_path / "a.run"))
    with pytest.raises(ValueError, match="only its spectrum was kept"):
        record.svd(1)


def test_exported_bounds_are_never_below_the_bound():
    error = np.abs(np.random.default_rng(0).standard_normal(1000)) * 10.0 ** np.random.default_rng(1).integers(
        -300, 300, 1000
    )
    error[:3] = (0, 1e-10, 9.95e-7)
    shown = _rounded_up(error)
    assert np.all(shown >= error * (1 - 1e-12)) and np.all(shown <= error * 1.2)


def test_grouped_convolution_is_the_union_of_its_blocks():
    conv = torch.nn.Conv2d(8, 8, 3, groups=8)
    [record] = ns.analyze(conv)
    rows = torch.linalg.vector_norm(conv.weight.detach().double().reshape(8, 9), dim=1)
    assert record.shape == (8, 72)
    assert np.allclose(record.spectrum.values, rows.sort(descending=True).values.numpy())


@pytest.mark.parametrize(
    "conv,full",
    [
        (torch.nn.Conv2d(4, 6, 3, padding=1), False),
        (torch.nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), False),
        (torch.nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), False),
        (torch.nn.Conv2d(4, 6, 3, padding=2, dilation=2, padding_mode="circular"), True),
        (torch.nn.Conv2d(3, 6, 4, stride=4), False),
        (torch.nn.Conv1d(4, 6, 3, padding=1).bfloat16(), False),
        (torch.nn.Conv3d(2, 3, 3, padding=1), False),
        (torch.nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), False),
    ],
)
def test_convolutions_carry_the_operator_too(conv, full, tmp_path):
    analysis = ns.analyze(conv, grid=8, runfile=tmp_path / "job.run")
    [record] = analysis
    operator = record.operator
    assert operator is not None and operator.spectrum.complete is full
    kernel = conv.weight.detach().double()
    n = int(np.prod(operator.grid)) * conv.in_channels
    basis = torch.eye(n, dtype=torch.float64).reshape(n, conv.in_channels, *operator.grid)
    twin = copy.deepcopy(conv).double()
    twin.weight.data, twin.bias = kernel, None
    truth = torch.linalg.svdvals(twin(basis).reshape(n, -1).detach()).numpy()
    known = operator.spectrum.values
    assert len(known) == (len(truth) if full else 1)
    assert np.all(np.abs(known - truth[: len(known)]) <= np.maximum(operator.spectrum.error, 5e-3 * truth[0]))
    assert truth[0] <= operator.upper * (1 + 1e-12)
    [again] = Analysis.from_run(RunFile.read(tmp_path / "job.run"))
    assert again.operator is not None and np.array_equal(again.operator.spectrum.values, known)
    shown = analysis.to_dict()["weights"][0]["operator"]
    assert shown["grid"] == list(operator.grid) and shown["upper"] == operator.upper


def test_a_convolution_of_a_file_says_what_it_assumes():
    [record] = ns.analyze({"conv.weight": torch.randn(4, 3, 3, 3)})
    assert record.operator is not None and "assumed" in record.operator.note


def test_accuracy_that_cannot_be_met_is_told():
    hard = torch.diag(torch.logspace(0, -12, 40, dtype=torch.float64))
    [record] = ns.analyze({"w": hard}, accuracy=1e-6)
    assert any("known less well than asked" in note for note in record.notes)


def test_a_corrupt_tensor_is_skipped_and_the_run_goes_on(tmp_path):
    path = write_single(tmp_path / "m.safetensors")
    source = ns.open(path)
    weight = source.weights[-1]
    os.truncate(path, weight.part.ref.load.offset + 4)
    found = measure(weight, AnalyzeOptions())
    assert isinstance(found, Skipped) and "early" in found.reason

"""Every attack of ``cases/``: one file each, which writes what a stranger might send and says what must happen.

``python tests/attacks/cases/NAME.py FOLDER`` writes one, to be tried with ``netspectra inspect``.
"""

import importlib
import json
import os
import resource
import shutil
import stat
import time
from pathlib import Path

import pytest
import torch

import netspectra as ns
from tests.faces.test_cli import process

__all__ = ["browser"]  # a fixture

CASES = sorted(path.stem for path in (Path(__file__).parent / "cases").glob("[a-z]*.py"))


def state(folder):
    """Names, sizes, times and links of everything in a folder: it must not change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path)] = (facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ino)
    return found


@pytest.mark.parametrize("name", CASES)
def test_attack(name, tmp_path):
    case = importlib.import_module(f"tests.attacks.cases.{name}")
    path = case.write(tmp_path)
    before, memory = state(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    try:
        source = ns.open(path)
        for ref in source.tensors:
            if not ref.problem and ref.nbytes < 1 << 20:
                ref.load()
        said = "; ".join(ref.problem for ref in source.tensors)
    except ns.InputRefused as refusal:
        said = str(refusal)
        assert "\n" not in said and said.isprintable() and str(tmp_path) in said and len(said) < 900
        assert said.startswith(str(tmp_path)), "a message begins with the file"
    assert time.process_time() - began < 4  # two on a quiet machine
    assert case.EXPECT in said
    assert state(tmp_path) == before and not (tmp_path / "PWNED").exists()
    size = max((s.st_size for s in map(os.lstat, tmp_path.rglob("*")) if stat.S_ISREG(s.st_mode)), default=0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10
    assert grown < 4 * min(size, 1 << 27) + (64 << 20)


def test_modules_in_the_folder_are_never_imported(tmp_path):
    """Not even by ``python -m netspectra`` from within the folder."""
    from tests.attacks.cases.modules_in_the_folder import write

    folder = write(tmp_path)
    for arguments in (("inspect", "."), ("analyze", ".", "-q")):
        done = process(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("name", ["truncated_download", "pickle_that_runs", "index_that_escapes"])
def test_the_command_says_one_line_and_leaves_with_2(name, tmp_path):
    case = importlib.import_module(f"tests.attacks.cases.{name}")
    done = process("analyze", case.write(tmp_path))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and case.EXPECT in done.stderr


# ---- configs and run files -----------------------------------------------------------------------------------------

WORDS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "model_type", "intermediate_size", "text_config",
         "quantization_config", "peft", "lora_alpha", "r", "rank_pattern", "alpha_pattern", "use_dora",
         "n_head", "tie_word_embeddings", "compression_config", "group_size", "bits", "quant_method")  # fmt: skip
NAMES = (
    *("w", "w_scale", "w_scale_inv", "w_packed", "w_shape", "w_zero_point", "w_g_idx", "w_global_scale", "qweight"),
    *("qzeros", "scales", "g_idx", "weight", "SCB", "weight_format", "weight.absmax", "weight.quant_map", "weight_g"),
    *("weight.nested_absmax", "weight.quant_state.bitsandbytes__nf4", "weight_v", "weight_orig", "weight_u", "w_mask"),
    *("a.parametrizations.weight.original0", "a.parametrizations.weight.original1", "a.lora_A.weight", "c.qkv.weight"),
    *("a.lora_B.weight", "a.lora_embedding_A", "gate_up_proj", "experts.gate_up_proj", "weight_ih_l0", "weight_hh_l0"),
    *("a.lora_magnitude_vector", "query_key_value.weight", "a.lora_E", "pos_embed", "weight_hr_l0", "x.c_attn.weight"),
)


def test_any_names_shapes_and_config_are_viewed_or_skipped(tmp_path):
    """Groups of names that belong together, of shapes that do not, under a config that lies."""
    import random

    from tests.attacks.mutate import _value

    dtypes = {"F32": 4, "F16": 2, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "I64": 8, "F64": 8, "BF16": 2}
    for number in range(200):
        chance = random.Random(number)
        header, end = {}, 0
        for name in chance.sample(NAMES, chance.randrange(1, 9)):
            dtype = chance.choice(list(dtypes))
            shape = [chance.choice((0, 1, 2, 3, 4, 8, 16)) for _ in range(chance.choice((0, 1, 2, 2, 2, 3, 4)))]
            size = dtypes[dtype]
            for one in shape:
                size *= one
            header[f"m.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + chance.randbytes(end))
        config = {word: _value(chance) for word in chance.sample(WORDS, 6)}
        config["quantization_config"] = {word: _value(chance) for word in chance.sample(WORDS, 4)}
        (tmp_path / "config.json").write_text(json.dumps(config).replace("NaN", "1").replace("Infinity", "2"))
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
        try:
            source = ns.open(tmp_path)
            ns.analyze(source, workers=1).to_json()
        except ns.InputRefused as refusal:
            assert "\n" not in str(refusal) and str(refusal).startswith(str(tmp_path)), refusal


def spoil_database(path, statements):
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def refused_when_spoilt(path, statements, read):
    spoil_database(path, statements)
    began = time.process_time()
    with pytest.raises(ns.InputRefused) as refusal:
        read()
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert time.process_time() - began < 2


DATABASES = {
    "a view that never ends": ("DROP TABLE records", "CREATE VIEW records AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL"
    " SELECT x + 1 FROM r) SELECT x AS step, x AS position, 'n' AS name, '{}' AS findings, x AS \"values\", x AS error,"
    " x AS operator_values, x AS operator_error, 0.0 AS seconds FROM r"),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",),
    "another table": ("CREATE TABLE more (x)",),
    "deep JSON": (f"UPDATE records SET findings = '{'[' * 100_000}'",),
    "no JSON": ("UPDATE records SET findings = x'ff'",),
    "NULL": ("UPDATE records SET findings = NULL",),
    "another shape": ("UPDATE records SET findings = replace(findings, '\"shape\": [', '\"shape\": [-1, ')",),
    "half a number": ("UPDATE records SET \"values\" = x'00'",),
    "NaN": ("UPDATE records SET error = zeroblob(length(error) - 8) || x'000000000000f87f'",),
    "NaN in bytes": ("UPDATE records SET error = CAST(zeroblob(length(error) - 8) || x'000000000000f87f' AS BLOB)",),
    "fewer errors": ("UPDATE records SET error = zeroblob(8)",),
    "text for a number": ("UPDATE records SET seconds = 'x'",),
    "meta": ("UPDATE meta SET value = '{}' WHERE key = 'source'",),
    "no meta": ("DELETE FROM meta WHERE key = 'skipped'",),
    "a level that is none": ("UPDATE records SET findings = replace(findings, '\"level\": \"', '\"level\": \"x')",),
    "another schema": ("UPDATE meta SET value = '99' WHERE key = 'schema'",),
}  # fmt: skip


@pytest.fixture(scope="module")
def honest_run(tmp_path_factory):
    from tests.checkpoints import small_model

    path = tmp_path_factory.mktemp("run") / "job.run"
    ns.analyze(small_model(), include="layers.0.*", runfile=path)
    return path


@pytest.mark.parametrize("name", DATABASES)
def test_a_run_file_of_a_stranger_is_believed_field_by_field(name, honest_run, tmp_path):
    from netspectra.analysis import Analysis
    from netspectra.runfile import RunFile

    path = tmp_path / "job.run"
    shutil.copy(honest_run, path)
    refused_when_spoilt(path, DATABASES[name], lambda: Analysis.from_run(RunFile.read(path)).to_json())


def test_spoilt_findings_are_refused_or_exported(honest_run, tmp_path):
    """Whatever one field of the findings holds, the exports are written or the file is refused."""
    import random
    import sqlite3

    from netspectra.analysis import Analysis
    from netspectra.runfile import RunFile
    from tests.attacks.mutate import _changed

    path = tmp_path / "job.run"
    shutil.copy(honest_run, path)
    connection = sqlite3.connect(path, isolation_level=None)
    held = connection.execute("SELECT position, findings FROM records").fetchall()
    refused = 0
    for number in range(150):
        chance = random.Random(number)
        position, text = chance.choice(held)
        spoilt = json.dumps(_changed(json.loads(text), chance))
        connection.execute("UPDATE records SET findings = ? WHERE position = ?", (spoilt, position))
        try:
            analysis = Analysis.from_run(RunFile.read(path))
            json.loads(analysis.to_json(), parse_constant=pytest.fail)
            analysis.to_csv()
            analysis._repr_html_()
        except ns.InputRefused:
            refused += 1
        connection.execute("UPDATE records SET findings = ? WHERE position = ?", (text, position))
    assert 75 < refused < 150


WATCHED = {
    "looks that never end": ("DROP TABLE looks", "CREATE VIEW looks AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL"
    " SELECT x + 1 FROM r) SELECT x AS step, 'cheap' AS what, 0 AS rank, x'00' AS numbers, '{}' AS notes FROM r"),
    "half a look": ("UPDATE looks SET numbers = substr(numbers, 2)",),
    "a look too long": ("UPDATE looks SET numbers = numbers || x'00000000'",),
    "text for a look": ("UPDATE looks SET numbers = 'x'",),
    "a look at no step": ("INSERT INTO looks VALUES (x'00', 'cheap', 0, x'00', '{}')",),
    "notes that are none": ("UPDATE looks SET notes = '[]'",),
    "notes of text": ("UPDATE looks SET notes = '{\"loss\": \"<b>\"}'",),
    "deep notes": (f"UPDATE looks SET notes = '{'[' * 100_000}'",),
    "an alarm that is none": ("INSERT INTO events VALUES (99, '{}')",),
    "an alarm of a list": ("INSERT INTO events VALUES (99, '[1]')",),
    "an alarm of bytes": ("INSERT INTO events VALUES (99, x'ff')",),
    "a state that is none": ("UPDATE meta SET value = '{\"step\": \"x\"}' WHERE key = 'state'",),
    "fewer weights": ("UPDATE meta SET value = '[]' WHERE key = 'watched'",),
    "weights of text": ("UPDATE meta SET value = '[\"w\"]' WHERE key = 'watched'",),
    "other signals": ("UPDATE meta SET value = '7' WHERE key = 'signals'",),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON looks BEGIN DELETE FROM looks; END",),
}  # fmt: skip


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory):
    import torch

    path = tmp_path_factory.mktemp("run") / "training.run"
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.Monitor(model, path, optimizer=optimizer, budget=None, every=1) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).square().mean()
            loss.backward()
            monitor.note(loss=loss)
            optimizer.step()
    return path


@pytest.mark.parametrize("name", WATCHED)
def test_the_run_file_of_a_training_is_believed_field_by_field(name, watched_run, tmp_path):
    from netspectra.timeline import Timeline

    Timeline.read(watched_run).to_html()  # as it is, it is fine
    path = tmp_path / "training.run"
    shutil.copy(watched_run, path)
    refused_when_spoilt(path, WATCHED[name], lambda: Timeline.read(path).to_html())


# ---- reports -------------------------------------------------------------------------------------------------------

EVIL = (
    "<script>window.hit=1</script>.weight",
    "</script><img src=x onerror=window.hit=1>.weight",
    "<a href='javascript:window.hit=1'>.weight",
    "<svg onload=window.hit=1>.weight",
    "javascript:window.hit=1//.weight",
    "<b>bold</b><a href=http://evil.example/>x</a>.weight",
    "${window.hit=1}{{7*7}}.weight",
    "\x1b]0;title\x07\u202ereversed\x00.weight",
    "=cmd|' /C calc'!A0",
    "../../../etc/passwd",
    "__proto__",
    "constructor.prototype",
    "a" * 5000,
)


@pytest.mark.browser
def test_names_from_a_hostile_file_are_inert_in_every_export(tmp_path, browser):
    """From the bytes of a checkpoint, through the command, to a browser: no script, no request, exact in JSON."""
    from safetensors.torch import save_file

    from tests.test_report import Visit

    save_file({name: torch.randn(6, 4) for name in EVIL}, tmp_path / "m.safetensors")
    names = ("html", "json", "csv")
    outs = [part for kind in names for part in (f"--{kind}", str(tmp_path / f"out.{kind}"))]
    done = process("analyze", tmp_path / "m.safetensors", *outs)
    assert done.returncode == 0 and not set(done.stdout + done.stderr) & set("\x1b\x07\x00\u202e")
    found = json.loads((tmp_path / "out.json").read_text())
    assert {weight["name"] for weight in found["weights"]} == set(EVIL)
    assert not any(line.startswith(("=", '"=', "@", "+")) for line in (tmp_path / "out.csv").read_text().splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "out.csv", "out.html", "out.json"]
    visit = Visit(browser, (tmp_path / "out.html").read_text(), tmp_path)
    page = visit.page
    page.locator("#depth-chart").scroll_into_view_if_needed()
    page.wait_for_selector("#depth-chart .main-svg")
    assert page.evaluate("window.hit") is None and visit.complaints == [] and visit.foreign() == []
    assert page.locator("a[href^='javascript'], a[href*='evil.example'], main img").count() == 0
    policy = page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    visit.context.close()


@pytest.mark.browser
def test_names_are_inert_in_figures(tmp_path, browser):
    """plotly takes a few tags in texts for markup, links among them."""
    analysis = ns.analyze({name: torch.randn(6, 4) for name in EVIL[:7]})
    analysis.plot(save=tmp_path / "figure.html")
    page = browser.new_page()
    page.goto((tmp_path / "figure.html").as_uri())
    page.wait_for_selector(".main-svg .legendtext")
    assert page.evaluate("window.hit") is None and page.locator(".main-svg a").count() == 0
    assert "<b>bold</b>" in " ".join(page.locator(".legendtext").all_text_contents())
    page.close()

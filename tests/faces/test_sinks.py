"""Each sink, read back with the tracker's own reader; skipped where the tracker is not installed."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.faces import sinks
from tests.verbs.watch.trainings import plain, train

NAME = "netspectra/sigma_1/0.weight"


def watched(sink: Any) -> dict[int, float]:
    """Train under a monitor with the sink; gives sigma_1 of the first weight by step, as a plain function saw it."""
    net, seen = plain(), {}

    def keep(step: int, numbers: Any) -> None:
        seen[step] = numbers["sigma_1/0.weight"]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the monitor drops a sink")
        with ns.Monitor(net[0], optimizer=net[1], budget=None, sinks=[sink, keep]):
            train(net, 30)
    assert sorted(seen) == [0, 10, 20, 30]
    return seen


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = watched(sinks.tensorboard(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars(NAME)} == pytest.approx(seen, rel=1e-6)


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a run file of wandb, whose Python package has no reader of its own: LevelDB's log format."""
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # the rest of a block
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(InputRefused, match=r"wandb\.init first"):
        sinks.wandb()
    run = wandb.init(project="test", dir=str(tmp_path), mode="offline")
    seen = watched(sinks.wandb())
    run.finish()
    until = time.monotonic() + 30
    while (found := kept(tmp_path, wandb_internal_pb2.Record)) != pytest.approx(seen):  # its helper writes behind
        assert time.monotonic() < until, found
        time.sleep(0.5)


def kept(folder: Path, record_type: Any) -> dict[int, float]:
    """What the file of an offline run holds of the metric, by our step."""
    found: dict[int, float] = {}
    for data in leveldb_log(next(folder.glob("wandb/offline-run-*/run-*.wandb")).read_bytes()):
        record = record_type()
        record.ParseFromString(data)
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if NAME in row:
            found[row["netspectra/step"]] = row[NAME]
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr("mlflow.utils.credentials.read_mlflow_creds", lambda: None, raising=False)
    uri = tmp_path.as_uri()
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.create_experiment("a")).info.run_id
    sink = sinks.mlflow(run, uri=uri)
    seen = watched(sink)
    assert {m.step: m.value for m in client.get_metric_history(run, NAME)} == pytest.approx(seen)
    sink(1, {"sigma_1/attention.in_proj_weight[q]": 1.0})
    assert client.get_metric_history(run, "netspectra/sigma_1/attention.in_proj_weight_q_")[0].value == 1.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    run = trackio.init(project="test", name="a", embed=False)
    seen = watched(sinks.trackio(run))
    trackio.finish()
    from trackio.sqlite_storage import SQLiteStorage

    found = {row["step"]: row[NAME] for row in SQLiteStorage.get_logs("test", "a") if NAME in row}
    assert found == pytest.approx(seen)

"""Checkpoints in a real S3 server on loopback (moto's), by s3fs: ``make test-remote``."""

import os

import pytest
import torch
from safetensors.torch import save

import netspectra as ns
from netspectra.sources import ranges
from tests.checkpoints import small_model, write_sharded

pytestmark = pytest.mark.remote
s3fs = pytest.importorskip("s3fs", reason="make test-remote installs it")
server = pytest.importorskip("moto.server", reason="make test-remote installs it")


@pytest.fixture(scope="module")
def store():
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setitem(os.environ, name, value)
        system = s3fs.S3FileSystem()
        system.mkdir("models")
        yield system
    running.stop()


def test_a_sharded_folder_in_a_bucket_is_analysed_as_the_one_on_disk(store, tmp_path):
    write_sharded(tmp_path / "m")
    for file in (tmp_path / "m").iterdir():
        store.pipe(f"models/m/{file.name}", file.read_bytes())
    here, there = ns.analyze(tmp_path / "m"), ns.analyze("s3://models/m")
    assert there.source["fingerprint"] == here.source["fingerprint"]
    assert {**there.to_dict(), "source": 0} == {**here.to_dict(), "source": 0}


def test_only_the_wanted_bytes_are_asked_for(store, monkeypatch):
    g = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.w.weight": torch.randn(1024, 512, generator=g) for i in range(4)}
    store.pipe("models/big.safetensors", save(tensors))
    asked = []
    fetched = ranges._fetched
    monkeypatch.setattr(ranges, "_fetched", lambda p, a, b: asked.append(b - a) or fetched(p, a, b))
    source = ns.open("s3://models/big.safetensors")
    assert sum(asked) <= ranges.BLOCK
    asked.clear()
    ref = source.tensors[2]
    assert torch.equal(ref.load((slice(10, 500),)), tensors[ref.name][10:500])
    assert sum(asked) == 490 * 512 * 4


def test_what_is_not_in_the_bucket_is_told(store):
    with pytest.raises(ns.InputRefused, match=r"s3://models/none\.safetensors: no such file"):
        ns.open("s3://models/none.safetensors")
    with pytest.raises(ns.InputRefused, match="no such file"):
        ns.open("s3://no-such-bucket/m")


def test_a_changed_object_is_another_job(store, tmp_path):
    store.pipe("models/m.safetensors", save(small_model()))
    ns.analyze("s3://models/m.safetensors", runfile=tmp_path / "job.run")
    store.pipe("models/m.safetensors", save(small_model(1)))
    with pytest.raises(ns.InputRefused, match="belongs to another job"):
        ns.analyze("s3://models/m.safetensors", runfile=tmp_path / "job.run")

"""Checkpoints elsewhere: the same findings as on disk, for the fewest bytes; trouble is told in one line."""

import json
import pickle
import threading

import pytest
import torch
from safetensors.torch import save

import netspectra as ns
from netspectra.faces.cli.door import run
from netspectra.sources import ranges
from netspectra.sources.remote import RemotePath, is_address
from tests.checkpoints import small_model, write_sharded, write_single
from tests.sources.elsewhere import served

fsspec = pytest.importorskip("fsspec", reason="the remote extra is not installed")
pytest.importorskip("aiohttp", reason="the remote extra is not installed")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pauses between tries, and nothing kept from the test before."""
    monkeypatch.setattr(ranges, "DELAYS", (0.0, 0.0, 0.0, 0.0))
    ranges._blocks.clear()


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def folder(path):
    return {f"m/{file.name}": file.read_bytes() for file in path.iterdir()}


def large(rows=2048, columns=512, count=4):
    """16 MB: several tensors, each of many blocks."""
    g = torch.Generator().manual_seed(0)
    return {f"layers.{i}.mlp.up.weight": torch.randn(rows, columns, generator=g) for i in range(count)}


@pytest.mark.parametrize("write", [lambda p: write_single(p / "model.safetensors").parent, write_sharded])
def test_a_folder_elsewhere_gives_what_the_same_folder_here_gives(tmp_path, memory, write):
    here = tmp_path / "m"
    here.mkdir()
    write(here)
    (here / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name, data in folder(here).items():
        memory.pipe(f"/{name}", data)
    local = ns.analyze(here)
    with served(folder(here)) as web:
        for address in ("memory://m", "memory://m/", f"{web.address}/m/"):
            source = ns.open(address)
            assert source.config == {"model_type": "llama"} and source.root is None
            found = ns.analyze(source)
            assert found.source["fingerprint"] == local.source["fingerprint"]
            assert {**found.to_dict(), "source": 0} == {**local.to_dict(), "source": 0}


def test_listing_costs_the_header_and_a_weight_its_own_bytes():
    tensors = large()
    data = save(tensors)
    with served({"big.safetensors": data}) as web:
        source = ns.open(f"{web.address}/big.safetensors?signature=secret")
        assert len(source.weights) == 4 and web.given <= ranges.BLOCK
        assert source.path == f"{web.address}/big.safetensors"  # what is exported has no secret in it
        web.given, heads = 0, web.requests["HEAD"]
        weight = pickle.loads(pickle.dumps(source.weights[2]))
        assert torch.equal(weight.part.load(), tensors[weight.name])
        assert web.given == weight.nbytes
        assert web.requests["HEAD"] == heads  # size and mark travel with the reference
        web.given = 0
        ref = source.tensors[1]
        assert torch.equal(ref.load((slice(100, 300),)), tensors[ref.name][100:300])
        assert web.given == 200 * 512 * 4


def test_a_hundred_gigabytes_are_listed_for_their_header(monkeypatch):
    rows = 50_000_000
    nbytes = rows * 1024
    header = {
        f"layers.{i}.w": {"dtype": "BF16", "shape": [rows, 512], "data_offsets": [i * nbytes, (i + 1) * nbytes]}
        for i in range(2)
    }
    text = json.dumps(header).encode()
    size = 8 + len(text) + 2 * nbytes
    start = (len(text).to_bytes(8, "little") + text).ljust(ranges.BLOCK, b"\0")
    asked = []

    def info(self):
        from netspectra.sources.remote import Facts

        return Facts(folder=False, size=size, stamp="1") if self.name == "giant.safetensors" else None

    def fetched(path, first, last):
        asked.append(last - first)
        return start[first:last]

    monkeypatch.setattr(RemotePath, "facts", property(info))
    monkeypatch.setattr(ranges, "_fetched", fetched)
    source = ns.open("memory://giant.safetensors")
    assert source.parameters == 2 * rows * 512 and size > 100e9
    assert sum(asked) <= ranges.BLOCK


def test_large_tensors_travel_in_pieces_of_which_few_are_under_way(monkeypatch):
    monkeypatch.setattr(ranges, "PIECE", 1 << 16)
    monkeypatch.setattr(ranges, "SMALL", 1 << 15)
    tensors = large(count=1)
    with served({"m.safetensors": save(tensors)}) as web:
        ref = ns.open(f"{web.address}/m.safetensors").tensors[0]
        web.pairs = threading.Barrier(2)
        assert torch.equal(ref.load(), tensors[ref.name])
        assert web.requests["GET"] >= 64 and web.most <= ranges.AT_ONCE


@pytest.mark.parametrize("status", [503, 429, 500])
def test_what_can_pass_is_tried_again(status):
    with served({"m.safetensors": save(small_model())}) as web:
        web.failures, web.status = 4, status
        source = ns.open(f"{web.address}/m.safetensors")
        web.failures = 3
        assert source.tensors[0].load().shape == source.tensors[0].shape


def test_what_goes_on_failing_is_told():
    with served({"m.safetensors": save(small_model())}) as web:
        web.failures = 1000
        with pytest.raises(ns.EnvironmentFailure, match=r"m\.safetensors: cannot be reached \(tried 5 times\): .*503"):
            ns.open(f"{web.address}/m.safetensors")


def test_what_cannot_pass_is_not_tried_again():
    with served({"m.safetensors": save(small_model())}) as web:
        web.denied = ("m.safetensors",)
        with pytest.raises(ns.InputRefused, match="may not be read with these credentials"):
            ns.open(f"{web.address}/m.safetensors")
        asked = web.requests.total()
        with pytest.raises(ns.InputRefused, match="no such file; the address of a folder ends in /"):
            ns.open(f"{web.address}/other.safetensors")
        assert web.requests.total() - asked <= 2 and asked <= 2


def test_a_server_without_ranges_sends_no_whole_file():
    data = save(large())
    with served({"m.safetensors": data}) as web:
        web.ranges = False
        source = ns.open(f"{web.address}/m.safetensors")
        with pytest.raises(ns.InputRefused, match="knows no range requests; download it first"):
            source.tensors[2].load()


@pytest.mark.parametrize("change", ["shorter", "gone"])
def test_a_file_that_changes_under_the_reader_is_noticed(change):
    with served({"m.safetensors": save(large())}) as web:
        source = ns.open(f"{web.address}/m.safetensors")
        if change == "shorter":
            web.short = 10
        else:
            web.files.clear()
        found = ns.analyze({"a": torch.eye(3)})  # the machine goes on
        assert len(found) == 1
        with pytest.raises(ns.InputRefused, match=r"was it (changed|moved) while it was read\?"):
            source.tensors[0].load()


def test_a_run_file_resumes_and_a_changed_input_is_refused(tmp_path, memory):
    memory.pipe("/m.safetensors", save(small_model()))
    first = ns.analyze("memory://m.safetensors", runfile=tmp_path / "job.run")
    again = ns.analyze("memory://m.safetensors", runfile=tmp_path / "job.run")
    assert first.to_json() == again.to_json()
    memory.pipe("/m.safetensors", save(small_model(1)))
    with pytest.raises(ns.InputRefused, match="belongs to another job"):
        ns.analyze("memory://m.safetensors", runfile=tmp_path / "job.run")


def test_caches_of_fsspec_stand_in_front(memory):
    memory.pipe("/m.safetensors", save(small_model()))
    source = ns.open("simplecache::memory://m.safetensors")
    assert torch.equal(source.tensors[0].load(), small_model()[source.tensors[0].name])


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("memory://nowhere", "no such file"),
        ("ftp://host/m.safetensors", r"address of unknown kind; there are s3://"),
        ("zip::memory://m.zip", "address of unknown kind"),
    ],
)
def test_addresses_that_lead_nowhere(address, match):
    with pytest.raises(ns.InputRefused, match=match):
        ns.open(address)


def test_a_missing_extra_is_named(monkeypatch):
    def without(protocol):
        raise ImportError(f"Install what speaks {protocol}")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", without)
    with pytest.raises(ns.InputRefused, match=r"needs s3fs: pip install 'netspectra\[remote\]'"):
        ns.open("s3://bucket/model")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\0b"])
def test_an_index_elsewhere_names_plain_files_only(memory, name):
    memory.pipe("/secret.safetensors", save(small_model()))
    memory.pipe("/m/model.safetensors.index.json", json.dumps({"weight_map": {"w": name}}).encode())
    with pytest.raises(ns.InputRefused, match="allowed are plain file names"):
        ns.open("memory://m")


def test_names_with_special_characters_stay_names():
    data = save({"w.weight": torch.eye(4)})
    index = json.dumps({"weight_map": {"w.weight": "a?b#c%20d.safetensors"}}).encode()
    with served({"m/model.safetensors.index.json": index, "m/a%3Fb%23c%2520d.safetensors": data}) as web:
        assert len(ns.open(f"{web.address}/m/").weights) == 1


def test_limits_hold_elsewhere(memory):
    memory.pipe("/m.safetensors", (1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ns.InputRefused, match="claims a header of"):
        ns.open("memory://m.safetensors")
    memory.pipe("/n.safetensors", save(large())[:-5])
    with pytest.raises(ns.InputRefused, match="truncated"):
        ns.open("memory://n.safetensors")


def test_other_formats_are_read_the_same_way(tmp_path, memory):
    tensors = small_model()
    torch.save(tensors, tmp_path / "m.pt")
    import numpy as np

    np.savez(tmp_path / "m.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    for file in (tmp_path / "m.pt", tmp_path / "m.npz"):
        memory.pipe(f"/{file.name}", file.read_bytes())
        here, there = ns.open(file), ns.open(f"memory://{file.name}")
        assert there.format == here.format and there.fingerprint == here.fingerprint
        for one, other in zip(here.tensors, there.tensors, strict=True):
            assert one.name == other.name and torch.equal(one.load(), other.load())


def test_gguf_elsewhere(tmp_path, memory):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.arange(64 * 32, dtype=np.float32).reshape(64, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    memory.pipe("/m.gguf", path.read_bytes())
    here, there = ns.open(path), ns.open("memory://m.gguf")
    assert there.format == "gguf" and torch.equal(here.tensors[0].load(), there.tensors[0].load())


def test_addresses_have_parents_and_names():
    for url, parent, name in [
        ("s3://bucket/a/m.safetensors", "s3://bucket/a/", "m.safetensors"),
        ("memory://m.pt", "memory://", "m.pt"),
        ("https://user:word@host/a%20b/m.gguf?X-Amz-Signature=s#f", "https://user:word@host/a%20b/", "m.gguf"),
        ("simplecache::http://host/m.pt?s=1", "simplecache::http://host/", "m.pt"),
    ]:
        path = RemotePath(url)
        assert (path.parent.url, path.name) == (parent, name)
        assert (path.parent / "x.json").name == "x.json"
        assert "word" not in str(path) and "Signature" not in str(path)


def test_paths_of_this_machine_are_no_addresses(tmp_path):
    assert not is_address(str(tmp_path)) and not is_address("C:\\models\\m")
    write_single(tmp_path / "m.safetensors")
    assert ns.open(f"file://{tmp_path}/m.safetensors").root == tmp_path / "m.safetensors"


def test_the_command_line_takes_addresses(memory, monkeypatch, capsys):
    memory.pipe("/m.safetensors", save(small_model()))
    monkeypatch.setattr("sys.argv", ["netspectra", "inspect", "memory://m.safetensors"])
    assert run() == 0
    assert "memory://m.safetensors" in capsys.readouterr().out


def test_a_weight_elsewhere_travels_to_another_machine(memory):
    from netspectra.run.parcel import pack, unpack

    memory.pipe("/m.safetensors", save(small_model()))
    weight = ns.open("memory://m.safetensors").weights[1]
    parcel = pack(weight)
    assert len(parcel) < 2000 and torch.equal(unpack(parcel).part.load(), weight.part.load())

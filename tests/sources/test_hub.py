"""Hub ids, against a cache laid out as the hub's client lays it out; nothing is fetched."""

import pytest

import netspectra as ns
from netspectra.sources import hub
from tests.checkpoints import small_model, write_single

pytest.importorskip("huggingface_hub", reason="the hf extra is not installed")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_cached_model_is_opened_through_its_links(cache):
    folder = cache / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    (folder / "blobs").mkdir()
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    write_single(folder / "blobs" / "f00")
    (folder / "snapshots" / "abc123" / "model.safetensors").symlink_to("../../blobs/f00")
    source = ns.open("org/name")
    assert len(source.tensors) == len(small_model()) and source.format == "safetensors"


def test_what_is_not_cached_is_told(cache):
    with pytest.raises(ns.InputRefused, match="not cached"):
        ns.open("org/unknown")


def test_no_network_is_told(cache, monkeypatch):
    """A mistyped path of two parts looks like an id; what then fails is the hub's client, with an error of its own."""
    import huggingface_hub.utils  # noqa: F401 - which brings that client

    kinds = hub._unreached()
    if not kinds:
        pytest.skip("this client raises errors of the system's")
    for kind in kinds:

        def unreached(*args, kind=kind, **more):
            raise kind("Name or service not known")

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreached)
        with pytest.raises(ns.InputRefused, match="the hub cannot be reached"):
            ns.open("models/mistyped")


def test_missing_extra_is_named(cache, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ns.InputRefused, match=r"netspectra\[hf\]"):
        ns.open("org/name")


def test_paths_are_never_taken_for_ids(cache):
    for path in ("missing.pt", "./org/name", "/org/name", "a/b/c"):
        with pytest.raises(ns.InputRefused, match=r"no such file or folder$"):
            ns.open(path)

"""Tables of rows, honest and otherwise."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from netspectra.errors import InputRefused
from netspectra.sources.tables import open_table
from netspectra.weight import Selection


def whole(table):
    chunks = list(table)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_by_names(tmp_path, delimiter):
    rows = np.random.default_rng(0).standard_normal((9000, 3))
    text = delimiter.join(["a", "b b", "c"]) + "\n" + "\n".join(delimiter.join(map(repr, r.tolist())) for r in rows)
    (tmp_path / "x.csv").write_text(text + "\n\n", encoding="utf-8-sig")
    table = open_table(tmp_path / "x.csv")
    assert table.columns == {"rows": ("a", "b b", "c")}
    assert [len(chunk["rows"]) for chunk in table] == [4096, 4096, 808]
    assert (whole(table)["rows"] == rows).all() and (whole(table)["rows"] == rows).all()
    chosen = open_table(tmp_path / "x.csv", Selection(exclude=("b*",)))
    assert chosen.columns == {"rows": ("a", "c")} and (whole(chosen)["rows"] == rows[:, [0, 2]]).all()


def test_csv_without_names_and_with_gaps(tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n3,\n")
    table = open_table(tmp_path / "x.csv")
    assert table.columns == {} and np.isnan(whole(table)["rows"][1, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n1,x\n", "b: holds 'x' in line 2, no number; --exclude the column"),
        (b"a,b\n1\n", "line 2: has 1 cells, the first line 2"),
        (b"a,a\n1,2\n", "two columns of one name"),
        (b"a,b\n\xff\xfe,2\n", "not UTF-8"),
        (b'a,b\n"' + b"x" * 200_000 + b'",2\n', "is no table"),
        (b"a,b\n1,\x00\n", "no number"),
    ],
)
def test_csv_that_is_refused(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputRefused, match=message):
        whole(open_table(tmp_path / "x.csv"))


def test_parquet_with_plain_columns_and_embeddings(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    plain, embedded = rng.standard_normal((5000, 2)), rng.standard_normal((5000, 8)).astype(np.float32)
    columns = {"age": plain[:, 0], "size": plain[:, 1], "known": plain[:, 0] > 0, "embedding": list(embedded)}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = whole(open_table(tmp_path / "x.parquet"))
    assert (found["rows"][:, :2] == plain).all() and (found["embedding"] == embedded).all()
    assert open_table(tmp_path / "x.parquet").columns == {"rows": ("age", "size", "known")}
    pq.write_table(pa.table({"a": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(InputRefused, match="different lengths"):
        whole(open_table(tmp_path / "ragged.parquet"))
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "text.parquet")
    with pytest.raises(InputRefused, match="--exclude the column"):
        open_table(tmp_path / "text.parquet")
    spoilt = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(spoilt[: len(spoilt) // 2])
    with pytest.raises(InputRefused, match="no parquet file"):
        open_table(tmp_path / "x.parquet")


def test_arrays_of_files(tmp_path):
    rows = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    assert (whole(open_table(tmp_path / "x.npy"))["rows"] == rows).all()
    np.savez(tmp_path / "x.npz", a=rows, b=rows[:, :2], labels=np.arange(4))
    with pytest.raises(InputRefused, match="--exclude what is none"):
        open_table(tmp_path / "x.npz")
    found = whole(open_table(tmp_path / "x.npz", Selection(exclude=("labels",))))
    assert set(found) == {"a", "b"} and (found["b"] == rows[:, :2]).all()
    save_file({"hidden": rows.astype(np.float16)}, tmp_path / "x.safetensors")
    assert whole(open_table(tmp_path / "x.safetensors"))["rows"].dtype == np.float32
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputRefused, match="Python objects"):
        open_table(tmp_path / "objects.npy")

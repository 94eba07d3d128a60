"""Tables of rows: .csv, .parquet, and the arrays of any file that `open` reads; a few thousand rows at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from netspectra.sources import open as open_source
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.weight import Selection

__all__ = ["Table", "open_table"]

ROWS = "rows"  # what the numeric columns of a table, or a lone array, are called together
SIZE = 4096
LONGEST = 1 << 24  # characters of a line
CSV = (".csv", ".tsv")
PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Table:
    """Rows of one or several layers, read when iterated.

    Attributes:
        path: the file.
        columns: names of the columns of a layer, where they have names.
    """

    path: Path
    columns: Mapping[str, tuple[str, ...]]
    _read: Any

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Give chunks: layer -> (count, width)."""
        return self._read()


def open_table(path: str | Path, selection: Selection | None = None) -> Table:
    """Open a file of rows.

    Of a ``.csv`` (comma, semicolon or tab; first line the names, unless it is numbers) or ``.parquet`` file the numeric
    columns are one layer, ``rows``, and every parquet column of lists one of its own (embeddings). Of any other file
    that `open` reads every array is a layer, one row an entry of its first axis; a lone array is called ``rows``.

    Args:
        path: the file.
        selection: of the columns or arrays; all by default.

    Raises:
        InputRefused: damaged, columns of text, arrays of unequal length, nothing selected.
    """
    path, chosen = Path(path), selection or Selection()
    if path.suffix.lower() in CSV:
        return _csv(path, chosen)
    if path.suffix.lower() in PARQUET:
        return _parquet(path, chosen)
    return _arrays(path, chosen)


def _arrays(path: Path, selection: Selection) -> Table:
    refs = [ref for ref in open_source(path).tensors if selection.accepts(ref.name)]
    for ref in refs:
        if ref.problem:
            refuse(path, f"{ref.problem}; --exclude it", ref.name)
    lengths = {ref.name: ref.shape[0] if ref.shape else 0 for ref in refs}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        told = ", ".join(f"{name}: {count}" for name, count in list(lengths.items())[:6]) or "nothing"
        refuse(path, f"arrays must have the same rows, one a sample; --exclude what is none (found {told})")
    count = next(iter(lengths.values()))
    names = {ref.name: ref.name if len(refs) > 1 else ROWS for ref in refs}

    def read() -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, count, SIZE):
            cut = (slice(first, min(first + SIZE, count)),)
            yield {names[ref.name]: _numbers(ref.load(cut)) for ref in refs}

    return Table(path, {}, read)


def _numbers(tensor: Any) -> np.ndarray:
    tensor = tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
    return tensor.numpy()


def _csv(path: Path, selection: Selection) -> Table:
    GUARD.regular(path)
    with _text(path) as file:
        delimiter = max(",;\t", key=next(_lines(path, file), "").count)
    with _text(path) as file:
        first = _line(path, csv.reader(_lines(path, file), delimiter=delimiter))
    if not first:
        refuse(path, "is empty: there is no first line of names or numbers")
    headed = any(_number(cell) is None for cell in first)
    names = [cell.strip() for cell in first] if headed else [str(i) for i in range(len(first))]
    if len(set(names)) != len(names):
        refuse(path, "has two columns of one name", next(name for name in names if names.count(name) > 1))
    places = [i for i, name in enumerate(names) if selection.accepts(name)]
    if not places:
        refuse(path, f"no column is selected; there are {', '.join(names[:8])}")

    def read() -> Iterator[dict[str, np.ndarray]]:
        with _text(path) as file:
            reader = csv.reader(_lines(path, file), delimiter=delimiter)
            if headed:
                _line(path, reader)
            rows: list[list[float]] = []
            while (cells := _line(path, reader)) is not None:
                if not cells:
                    continue
                if len(cells) != len(names):
                    refuse(path, f"has {len(cells)} cells, the first line {len(names)}", f"line {reader.line_num}")
                rows.append([_cell(path, cells[i], names[i], reader.line_num) for i in places])
                if len(rows) == SIZE:
                    yield {ROWS: np.array(rows)}
                    rows = []
            if rows:
                yield {ROWS: np.array(rows)}

    return Table(path, {ROWS: tuple(names[i] for i in places)} if headed else {}, read)


def _text(path: Path) -> Any:
    return path.open(encoding="utf-8-sig", errors="strict", newline="")


def _lines(path: Path, file: Any) -> Iterator[str]:
    """Lines of a text that ends them."""
    try:
        while line := file.readline(LONGEST):
            if len(line) == LONGEST:
                refuse(path, f"has a line of more than {LONGEST} characters")
            yield line
    except UnicodeDecodeError as wrong:
        refuse(path, f"is not UTF-8 text (byte {wrong.start})")


def _line(path: Path, reader: Any) -> list[str] | None:
    """The next line's cells; None at the end."""
    try:
        return next(reader, None)
    except csv.Error as wrong:
        refuse(path, f"is no table: {wrong}", f"line {reader.line_num}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cell(path: Path, text: str, name: str, line: int) -> float:
    if not text.strip():
        return np.nan
    number = _number(text)
    if number is None:
        refuse(path, f"holds {printable(repr(text), 40)} in line {line}, no number; --exclude the column", name)
    return number


def _parquet(path: Path, selection: Selection) -> Table:
    if find_spec("pyarrow") is None:
        refuse(path, "parquet needs pyarrow: pip install 'netspectra[parquet]'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = GUARD.regular(path)
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    except (pa.ArrowException, OSError, ValueError) as wrong:
        refuse(path, f"is no parquet file: {wrong}")
    GUARD.inflates(path, "the table", size, unpacked)
    plain, lists = [], []
    for field in schema:
        if not selection.accepts(field.name):
            continue
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type):
            plain.append(field.name)
        elif _is_list(pa, field.type) and pa.types.is_floating(field.type.value_type):
            lists.append(field.name)
        else:
            refuse(path, f"holds {field.type}, neither numbers nor lists of them; --exclude the column", field.name)
    if not plain and not lists:
        refuse(path, f"no column is selected; there are {', '.join(schema.names[:8])}")

    def read() -> Iterator[dict[str, np.ndarray]]:
        widths: dict[str, int] = {}
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=SIZE, columns=[*plain, *lists]):
                    yield _batch(path, batch, plain, lists, widths)
        except (pa.ArrowException, OSError) as wrong:
            refuse(path, f"is damaged: {wrong}")

    return Table(path, {ROWS: tuple(plain)} if plain else {}, read)


def _is_list(pa: Any, kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _batch(
    path: Path, batch: Any, plain: Sequence[str], lists: Sequence[str], widths: dict[str, int]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    if plain:
        columns = [batch.column(name).to_numpy(zero_copy_only=False).astype(float) for name in plain]
        found[ROWS] = np.stack(columns, axis=1)
    for name in lists:
        values = batch.column(name).flatten().to_numpy(zero_copy_only=False)
        width = widths.setdefault(name, len(values) // max(batch.num_rows, 1))
        if width * batch.num_rows != len(values) or width == 0:
            refuse(path, "holds lists of different lengths", name)
        found[name] = values.reshape(batch.num_rows, width)
    return found

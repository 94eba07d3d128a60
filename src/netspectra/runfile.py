"""The run file: findings on disk as they come. SQLite, so that a killed job loses at most the weight in work."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.findings import RECORD, SKIPPED, check, numbers
from netspectra.linalg.spectrum import Spectrum
from netspectra.record import OperatorSpectrum, Record, Skipped, Value, Verdict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["INSERT", "RunFile", "is_run", "record_row", "skipped_from"]

SCHEMA = 1
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    step INTEGER NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL,
    findings TEXT, "values" BLOB, error BLOB, operator_values BLOB, operator_error BLOB, seconds REAL,
    PRIMARY KEY (step, position)) WITHOUT ROWID;
"""
# What the file of a monitor holds besides: see `netspectra.history`.
HISTORY_TABLES = """
CREATE TABLE looks (
    step INTEGER NOT NULL, what TEXT NOT NULL, rank INTEGER NOT NULL, numbers BLOB NOT NULL, notes TEXT NOT NULL,
    PRIMARY KEY (step, what, rank)) WITHOUT ROWID;
CREATE TABLE events (place INTEGER NOT NULL PRIMARY KEY, finding TEXT NOT NULL) WITHOUT ROWID;
"""
NO_STEP = -1
LONGEST = 1 << 28  # bytes of a text or blob


class RunFile:
    """Records of one job, in a file that survives a kill at any moment and can be read while it is written.

    Attributes:
        path: the file.
        meta: what the job is: source, options, versions. Resuming with another meta is refused.
    """

    def __init__(self, path: str | Path, connection: sqlite3.Connection, lock: int | None = None) -> None:
        """Wrap an open connection; use `create_or_resume` or `read`."""
        self.path = Path(path)
        self._connection = connection
        self._lock = lock

    @classmethod
    def create_or_resume(cls, path: str | Path, meta: Mapping[str, Any], *, history: bool = False) -> RunFile:
        """Open the file for writing, a new one or one of exactly this job; ``history`` for one of a monitor.

        Raises:
            InputRefused: the file holds another job (its input, options or version differ), or is no run file.
            EnvironmentFailure: another process is writing it, or the disk does not let us.
        """
        path = Path(path)
        with ExitStack() as undo:
            lock = _only_writer(path)
            undo.callback(_give_up, path, lock)
            run = cls(path, _connect(path, "rwc"), lock)
            undo.callback(run._connection.close)
            run._begin(meta, TABLES + HISTORY_TABLES if history else TABLES)
            undo.pop_all()
        return run

    def _begin(self, meta: Mapping[str, Any], tables: str) -> None:
        with self._guarded():
            self._connection.execute("BEGIN IMMEDIATE")
            if not self._connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                for statement in tables.split(";"):
                    self._connection.execute(statement)
                rows = {"schema": SCHEMA, **meta}
                self._connection.executemany("INSERT INTO meta VALUES (?, ?)", [(k, _dump(v)) for k, v in rows.items()])
            self._connection.execute("COMMIT")
        self._must_be_ours()
        self._must_match(meta)
        with self._guarded():
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")

    @classmethod
    def read(cls, path: str | Path) -> RunFile:
        """Open an existing run file for reading, also while another process writes it."""
        if not Path(path).is_file():
            raise InputRefused(f"{path}: no such run file")
        with ExitStack() as undo:
            run = cls(path, _connect(Path(path), "ro"))
            undo.callback(run.close)
            run._must_be_ours()
            schema = run.meta.get("schema")
            if schema != SCHEMA:
                raise InputRefused(f"{path}: run file of schema {schema!r}, this version reads {SCHEMA}")
            undo.pop_all()
        return run

    @property
    def meta(self) -> dict[str, Any]:
        """What the job is."""
        with self._guarded():
            rows = self._connection.execute("SELECT key, value FROM meta").fetchall()
        return {str(key): self.parsed(value, f"entry {key!r}") for key, value in rows}

    def add(self, position: int, found: Record | Skipped) -> None:
        """Keep one weight's findings, atomically."""
        with self._guarded():
            self._connection.execute(INSERT, record_row(position, found))

    def found(self) -> dict[int, Record | Skipped]:
        """Everything kept so far, by position in the checkpoint."""
        return {position: found for _, position, found in self.rows()}

    def rows(self) -> Iterator[tuple[int | None, int, Record | Skipped]]:
        """Every (step, position, finding), in that order."""
        query = (
            'SELECT step, position, findings, "values", error, operator_values, operator_error, seconds '
            "FROM records ORDER BY step, position"
        )
        with self._guarded():
            for step, position, findings, *arrays, seconds in self._connection.execute(query):
                what = f"{self.path}: row {position!r}"
                if type(step) is not int or type(position) is not int or not isinstance(seconds, float):
                    raise InputRefused(
                        f"{what} is not as netspectra writes it: damaged? Repeat the job into a new file"
                    )
                step = None if step == NO_STEP else step
                yield step, position, _restore(self.parsed(findings, what), arrays, seconds, step, what)

    def parsed(self, text: Any, what: str) -> Any:
        """JSON of the file, or a refusal that names ``what``."""
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError):
            raise InputRefused(f"{self.path}: {what} is no JSON: damaged? Repeat the job into a new file") from None

    def finish(self) -> None:
        """Fold the write-ahead log into the one file, so that it can be moved, and close it.

        While somebody reads the file the log stays beside it: all is kept, and the last reader folds it.
        """
        with self._guarded():
            try:
                self._connection.execute("PRAGMA journal_mode=DELETE")
            except sqlite3.OperationalError as wrong:
                if wrong.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
        self.close()

    def close(self) -> None:
        """Close the file, and let another process write it."""
        self._connection.close()
        if self._lock is not None:
            _give_up(self.path, self._lock)
            self._lock = None

    def _must_be_ours(self) -> None:
        """Refuse a database with anything but our tables: views and triggers of a stranger would be run by reading."""
        with self._guarded():
            held = self._connection.execute("SELECT type, sql FROM sqlite_master").fetchall()
        found = sorted((str(kind), _words(sql)) for kind, sql in held)
        kinds = [
            sorted(("table", _words(statement)) for statement in tables.split(";") if statement.strip())
            for tables in (TABLES, TABLES + HISTORY_TABLES)
        ]
        if found not in kinds:
            raise InputRefused(f"{self.path}: not a netspectra run file (other tables). Name another file")

    def _must_match(self, meta: Mapping[str, Any]) -> None:
        held = self.meta
        if held.get("schema") != SCHEMA:
            raise InputRefused(f"{self.path}: run file of schema {held.get('schema')!r}, this version writes {SCHEMA}")
        wanted = json.loads(_dump(dict(meta)))
        for key, was, now in _differences(held, wanted):
            raise InputRefused(
                f"{self.path}: belongs to another job: {key} was {_short(was)}, now {_short(now)}. "
                "Name a new run file, or repeat the job as it was"
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's changes or none; failures of the database are told in a line."""
        with self._guarded(), self._connection:  # commits, or rolls back whatever ends the block
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def select(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows that a query gives."""
        with self._guarded():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as wrong:
            raise _explained(self.path, wrong) from None


INSERT = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def record_row(position: int, found: Record | Skipped) -> tuple[Any, ...]:
    """One weight's findings as `INSERT` takes them."""
    step = found.step if isinstance(found, Record) and found.step is not None else NO_STEP
    if isinstance(found, Skipped):
        return (step, position, found.name, _dump({"skipped": asdict(found)}), None, None, None, None, 0.0)
    s = found.spectrum
    of = found.operator.spectrum if found.operator else None
    return (
        *(step, position, found.name, _dump(_findings(found)), s.values.tobytes(), s.error.tobytes()),
        *((of.values.tobytes(), of.error.tobytes()) if of else (None, None)),
        s.seconds,
    )


def is_run(path: Any) -> bool:
    """Whether a path is a database, as run files are; no other input of this package is one."""
    if not isinstance(path, str | os.PathLike) or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def skipped_from(row: Mapping[str, Any]) -> Skipped:
    """Undo ``asdict`` of a `Skipped` that went through JSON."""
    return Skipped(row["name"], tuple(row["shape"]), row["reason"], row["routine"])


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(what, was, is) for every entry that differs, down to the single option."""
    for key, now in wanted.items():
        was = held.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from ((f"{key}.{inner}", old, new) for inner, old, new in _differences(was, now))
        elif was != now:
            yield ("the input's time of change" if key == "guard" else key), was, now


def _words(statement: Any) -> str:
    return " ".join(str(statement).split())


def _short(value: Any) -> str:
    text = _dump(value)
    return text if len(text) <= 120 else f"{text[:100]}..."


def _only_writer(path: Path) -> int | None:
    """Hold a lock that dies with this process, on a neighbour of the file; None where the system has no such locks."""
    if fcntl is None:
        return None
    if path.exists() and not path.is_file():
        raise InputRefused(f"{path}: not a regular file")
    try:
        lock = os.open(_lock_name(path), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as wrong:
        raise EnvironmentFailure(f"{path}: cannot be written: {wrong.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise EnvironmentFailure(
            f"{path}: another process is writing this run file. Wait for it, or name another"
        ) from None
    if not _lock_name(path).exists() or os.fstat(lock).st_ino != _lock_name(path).stat().st_ino:
        os.close(lock)  # its last holder removed it between our two calls
        return _only_writer(path)
    return lock


def _give_up(path: Path, lock: int | None) -> None:
    if lock is not None:
        _lock_name(path).unlink(missing_ok=True)
        os.close(lock)


def _lock_name(path: Path) -> Path:
    return path.with_name(f"{path.name}-lock")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    try:
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        made = sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False)
        made.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        for setting in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
            made.execute(f"PRAGMA {setting}")
        return made
    except sqlite3.DatabaseError as wrong:
        raise _explained(path, wrong) from None


def _explained(path: Path, wrong: sqlite3.DatabaseError) -> Exception:
    text = str(wrong)
    if any(sign in text for sign in ("not a database", "no such table", "malformed", "Could not decode")):
        return InputRefused(f"{path}: not a netspectra run file ({text}). Name another file")
    if wrong.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:  # a journal is a file of its own, that names others
        return EnvironmentFailure(f"{path}: its job was killed while writing. Run the job again: it restores the file")
    if "locked" in text:
        return EnvironmentFailure(f"{path}: another process is writing this run file. Wait for it, or name another")
    return EnvironmentFailure(f"{path}: {text}")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=True)


def _findings(record: Record) -> dict[str, Any]:
    s = record.spectrum
    return {
        "name": record.name,
        "kind": record.kind,
        "shape": record.shape,
        "dtype": record.dtype,
        "parameters": record.parameters,
        "aliases": record.aliases,
        "notes": record.notes,
        "verdicts": [asdict(verdict) for verdict in record.verdicts],
        "metrics": {name: _value(value) for name, value in record.metrics.items()},
        "spectrum": _outline(s),
        "operator": None
        if record.operator is None
        else {
            "spectrum": _outline(record.operator.spectrum),
            "grid": record.operator.grid,
            "upper": record.operator.upper,
            "note": record.operator.note,
        },
    }


def _outline(s: Spectrum) -> dict[str, Any]:
    """A spectrum without its values."""
    return {
        "shape": s.shape,
        "frobenius2": s.frobenius2,
        "how": s.how,
        "dtype": s.dtype,
        "route": s.route,
        "blocks": s.blocks,
    }


def _filled(
    outline: dict[str, Any], values: bytes | None, error: bytes | None, what: str, seconds: float = 0.0
) -> Spectrum:
    outline["shape"] = tuple(outline["shape"])
    sigma = numbers(values, what)
    return Spectrum(values=sigma, error=numbers(error, what, len(sigma)), seconds=seconds, **outline)


def _value(value: Value) -> list[Any]:
    return [float(value), value.error, value.low, value.high, value.note, dict(value.detail)]


def _restore(
    findings: Any, arrays: list[bytes | None], seconds: float, step: int | None, what: str
) -> Record | Skipped:
    values, error, operator_values, operator_error = arrays
    if values is None and isinstance(findings, dict):
        return skipped_from(check(findings.get("skipped"), SKIPPED, what))
    check(findings, RECORD, what)
    spectrum = _filled(findings["spectrum"], values, error, what, seconds)
    operator = findings["operator"]
    if operator is not None:
        of = _filled(operator["spectrum"], operator_values, operator_error, what)
        operator = OperatorSpectrum(of, tuple(operator["grid"]), operator["upper"], operator["note"])
    metrics = {
        name: Value(number, error=e, low=low, high=high, note=note, detail=detail)
        for name, (number, e, low, high, note, detail) in findings.pop("metrics").items()
    }
    return Record(
        name=findings["name"],
        kind=findings["kind"],
        shape=tuple(findings["shape"]),
        dtype=findings["dtype"],
        parameters=findings["parameters"],
        spectrum=spectrum,
        metrics=metrics,
        aliases=tuple(findings["aliases"]),
        operator=operator,
        verdicts=tuple(Verdict(**verdict) for verdict in findings["verdicts"]),
        notes=tuple(findings["notes"]),
        step=step,
    )

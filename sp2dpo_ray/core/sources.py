"""Reading a preference data set, wherever it lies, into one Arrow table.

In: a path (parquet, JSONL, JSON, CSV, or a folder of one kind) or a Hugging Face id with a pinned
revision. Out: the table as it is, unread columns dropped. Invariant: a row that cannot be read is
refused with its file and line; nothing is skipped in silence.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from sp2dpo_ray.errors import ConfigError, DataError

FORMATS = (".parquet", ".jsonl", ".json", ".csv")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# UltraFeedback repeats the chosen conversation in `messages`: half of the bytes, no use here
UNREAD = {"messages"}


def read_source(source: str, *, split: str | None, revision: str | None) -> pa.Table:
    """The data set named by `source`.

    Raises DataError for a missing or unreadable file and ConfigError for an unpinned hub id.
    """
    path = find_source(source)
    if path is None:
        return _plain(_read_hub(source, split, revision))
    return _plain(_read_folder(path) if path.is_dir() else _read_file(path))


def _plain(table: pa.Table) -> pa.Table:
    """The same with texts as texts, where they came as categories (pandas) or views (polars)."""
    for place, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_string_view(kind):
            kind = pa.string()
        if kind != field.type:
            table = table.set_column(place, field.name, table[field.name].cast(kind))
    return table


def find_source(source: str) -> Path | None:
    """The file or folder that `source` names; None for a data set of the hub.

    Raises DataError where there is neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    looks_local = path.suffix in FORMATS or path.is_absolute() or source.startswith(".")
    if looks_local or not HUB_ID.fullmatch(source):
        raise DataError(f"data.source: no file or folder {source!r} (looked in {Path.cwd()})")
    return None


def _read_folder(folder: Path) -> pa.Table:
    files = sorted(file for file in folder.iterdir() if file.suffix in FORMATS)
    if not files:
        raise DataError(f"data.source: no file in {folder} ends in one of {', '.join(FORMATS)}")
    tables = [_plain(_read_file(file)) for file in files]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"data.source: the files in {folder} differ in a column: {error}"
        ) from error


def _read_file(path: Path) -> pa.Table:
    match path.suffix:
        case ".parquet":
            return _read_parquet(path)
        case ".jsonl":
            return _table(_read_lines(path), path)
        case ".json":
            return _table(_read_json(path), path)
        case ".csv":
            return _read_csv(path)
    raise DataError(f"data.source: {path} must end in one of {', '.join(FORMATS)}")


def _read_parquet(path: Path) -> pa.Table:
    try:
        names = [name for name in pq.read_schema(path).names if name not in UNREAD]
        return pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error


def _read_csv(path: Path) -> pa.Table:
    options = csv.ParseOptions(newlines_in_values=True)
    # ids such as 007 must stay text
    texts = {name: pa.string() for name in ("prompt_id", "prompt", "chosen", "rejected")}
    convert = csv.ConvertOptions(column_types=texts, strings_can_be_null=False)
    try:
        return csv.read_csv(path, parse_options=options, convert_options=convert)
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable CSV file: {error}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_object(line, f"{path}:{number}"))
    return rows


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must hold a list of objects, one a pair")
    return rows


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, not {type(row).__name__}")
    return row


def _table(rows: list[dict[str, Any]], path: Path) -> pa.Table:
    names = {name: None for row in rows for name in row if name not in UNREAD}
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise DataError(
                f"{path}: column {name!r} mixes kinds of values, or holds text that is no valid "
                f"Unicode, or a number that does not fit: {error}"
            ) from error
    return pa.table(columns)


def _read_hub(source: str, split: str | None, revision: str | None) -> pa.Table:
    if revision is None:
        raise ConfigError(
            f"data.revision: must pin the commit of the Hugging Face data set {source!r}; "
            "a data set that moves cannot be audited"
        )
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"data.source: {source!r} is no file here; to read it from the Hugging Face hub "
            "run: pip install 'sp2dpo-ray[hub]'"
        ) from None
    try:
        data = datasets.load_dataset(source, split=split or "train", revision=revision)
    except Exception as error:  # the hub client raises many unrelated types
        raise DataError(
            f"data.source: no file {source!r} here, and the Hugging Face hub did not give it "
            f"at revision {revision!r}: {type(error).__name__}: {error}"
        ) from error
    table = data.data.table
    return table.select([name for name in table.column_names if name not in UNREAD])

"""Where a journal lies: a folder that every actor sees, or an object store.

In: a path or a URI (`s3://`, `gs://`; credentials from the environment). Out: the few operations
that the journal needs. Invariant: what `put` wrote is seen whole or not at all.
"""

from __future__ import annotations

import io
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, cast

import pyarrow.fs as pafs

from sp2dpo_ray.errors import ConfigError, Stopped


class Place(Protocol):
    """Named files, names with `/` between folders."""

    def files(self, suffix: str) -> dict[str, int]:
        """Sizes of the files with this suffix, by name, in the order of names."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A file to read; it can seek."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a whole file, durably and at once."""
        ...

    def put_file(self, name: str, source: IO[bytes]) -> None:
        """The same from a file, however large."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file."""
        ...


class Folder:
    """A local or shared folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self, suffix: str) -> dict[str, int]:
        found = (path for path in self.root.rglob(f"*{suffix}") if path.is_file())
        return {p.relative_to(self.root).as_posix(): p.stat().st_size for p in sorted(found)}

    def open(self, name: str) -> IO[bytes]:
        return (self.root / name).open("rb")

    def open_to_append(self, name: str) -> IO[bytes]:
        """A new file that grows; each write goes to the operating system at once."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)

    def put(self, name: str, content: bytes) -> None:
        self.put_file(name, io.BytesIO(content))

    def put_file(self, name: str, source: IO[bytes]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def __str__(self) -> str:
        return str(self.root)


class ObjectStore:
    """A prefix of a bucket. Objects never grow, and appear when they are whole."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._fs, root = pafs.FileSystem.from_uri(uri)
        self._root = root.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStore, (self.uri,))  # each machine opens it with its own credentials

    def files(self, suffix: str) -> dict[str, int]:
        selector = pafs.FileSelector(self._root, allow_not_found=True, recursive=True)
        return {
            info.path.removeprefix(self._root + "/"): info.size
            for info in sorted(self._fs.get_file_info(selector), key=lambda info: info.path)
            if info.type == pafs.FileType.File and info.path.endswith(suffix)
        }

    def open(self, name: str) -> IO[bytes]:
        return cast(IO[bytes], self._fs.open_input_file(f"{self._root}/{name}"))

    def put(self, name: str, content: bytes) -> None:
        self.put_file(name, io.BytesIO(content))

    def put_file(self, name: str, source: IO[bytes]) -> None:
        stream = self._fs.open_output_stream(f"{self._root}/{name}")
        try:
            shutil.copyfileobj(source, stream)
        except BaseException:  # closing makes an object of what was written, and pyarrow must close
            with suppress(OSError):
                stream.close()
                self.remove(name)
            raise
        stream.close()

    def remove(self, name: str) -> None:
        self._fs.delete_file(f"{self._root}/{name}")

    def __str__(self) -> str:
        return self.uri.partition("?")[0]


def holds_credentials(where: str) -> bool:
    """Whether a path or URI has a password or key in it, which then would be told everywhere."""
    return "@" in where.partition("?")[0] or "access_key" in where or "secret_key" in where


def find_place(where: str, named: str = "annotate.journal") -> Place:
    """The place that a path or URI names; named: what an error calls it.

    Raises ConfigError for a URI that pyarrow does not know, Stopped for one that cannot be reached.
    """
    if "://" not in where:
        return Folder(Path(where).expanduser().resolve())
    if holds_credentials(where):
        raise ConfigError(f"{named} must hold no credentials; they come from the environment")
    try:
        place = ObjectStore(where)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{named}: {where!r} cannot be used: {error}") from None
    try:
        place.files(".jsonl")
    except OSError as error:
        raise Stopped(f"{named}: {place} cannot be reached: {error}") from None
    return place

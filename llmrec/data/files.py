"""One view of a folder and of a zip archive: names in, bytes out."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmrec.data.problems import Problems
from llmrec.errors import DataError


@dataclass(frozen=True)
class Files:
    """Files of a folder, or of a zip archive (GroupLens' downloads, a wheel), which is read without unpacking.

    Attributes:
        path: the folder or the archive.
        names: relative names with ``/``; for a folder only the files directly in it.
    """

    path: Path
    names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> Files:
        """Open a folder, a zip archive, or a file of a data folder (then its folder).

        Raises:
            DataError: there is nothing at `path`.
        """
        if path.is_dir():
            return cls(path, tuple(sorted(entry.name for entry in path.iterdir() if entry.is_file())))
        if not path.exists():
            hint = "give a folder, a zip archive or asset:NAME as data.path"
            raise DataError("The data set cannot be read:", [f"{path}: no such file or folder"], hint=hint)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
            return cls(path, tuple(sorted(name for name in names if not name.startswith("__MACOSX/"))))
        if path.suffix == ".zip":
            raise DataError("The data set cannot be read:", [f"{path}: not a zip archive, or a damaged one"])
        return cls.open(path.parent)

    def find(self, basename: str) -> str | None:
        """The full name of the file called `basename`, the least nested one; None where there is none."""
        found = [name for name in self.names if PurePosixPath(name).name == basename]
        return min(found, key=lambda name: (name.count("/"), name), default=None)

    def find_one(self, basenames: Sequence[str], problems: Problems, what: str) -> str | None:
        """The one file among `basenames` that is there; none or several is a problem."""
        found = [name for basename in basenames if (name := self.find(basename))]
        if len(found) == 1:
            return found[0]
        if found:
            problems.add("several files", f"{self.path}: {what} in several files: {', '.join(found)}; keep one")
        else:
            problems.add("missing file", f"{self.path}: no {what} ({' or '.join(basenames)})")
        return None

    def label(self, name: str) -> str:
        """What messages call the file: its name, after that of the archive where there is one."""
        return name if self.path.is_dir() else f"{self.path.name}/{name}"

    def read(self, name: str, problems: Problems) -> bytes | None:
        """The content, gunzipped where the name ends in ``.gz``; None, with a problem, where it is damaged."""
        try:
            if self.path.is_dir():
                raw = (self.path / name).read_bytes()
            else:
                with zipfile.ZipFile(self.path) as archive:
                    raw = archive.read(name)
            return gzip.decompress(raw) if name.endswith(".gz") else raw
        except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile) as error:
            problems.add("damaged file", f"{self.label(name)}: damaged or incomplete ({error})")
            return None

"""The two files that `sample.py` writes: a picture, and a .npz of arrays beside it.

Both bear a mark, by which `sample.py` recognizes files that it wrote before and may replace: a PNG has it as its text
"Software", and a .npz, which is a zip archive, as its comment.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdiff.experiment import plots
from jaxdiff.storage import AnyPath, exists, is_bucket, make_folder, opened, replacing
from jaxdiff.typing import InputError

_MARK = "jaxdiff sample.py"


def check(out: AnyPath, *, inputs: Sequence[AnyPath], runs: Sequence[AnyPath], overwrite: bool) -> None:
    """Make the folder of `out`; raise an InputError if a file can't be written or takes the place of another one.

    Args:
      out: the picture. The .npz beside it is checked as well.
      inputs: files that are never replaced.
      runs: folders of runs, of which no file is replaced but those that `sample.py` wrote.
      overwrite: whether other files may be replaced.
    """
    if out.suffix != ".png":
        raise InputError(f"--out = {out}: the image is a PNG; give a name that ends in .png")
    for path in (out, out.with_suffix(".npz")):
        if path.is_dir():
            raise InputError(f"--out = {out} can't be written: {path} is a folder; choose another name")
        if found := [file for file in inputs if _same(path, file)]:
            raise InputError(f"--out = {out} would replace {found[0]}, which this command reads; choose another name")
        replaces = exists(path) and not _marked(path)
        for run in runs:
            if _within(path, run / "checkpoints") or (replaces and _within(path, run)):
                raise InputError(f"--out = {out} would change the run in {run}: {path}; choose another name")
        if replaces and not overwrite:
            raise InputError(
                f"--out = {out} would replace {path}, which this command did not write; choose another name, or give "
                "--overwrite"
            )
    make_folder(out.parent, what=f"--out = {out}")


def write(out: AnyPath, image: UInt8[np.ndarray, "height width 3"] | None, arrays: dict[str, Any]) -> None:
    """Write the arrays and the picture, if there is one, each whole or not at all."""
    try:
        with replacing(out.with_suffix(".npz")) as file:
            np.savez(file, **arrays)
            with zipfile.ZipFile(file, "a") as archive:
                archive.comment = _MARK.encode()
            if image is not None:
                plots.save(out, image, software=_MARK)
    except OSError as error:
        raise InputError(f"--out = {out} can't be written ({error.strerror}); choose another folder") from error


def _marked(path: AnyPath) -> bool:
    """Return whether `write` made a file."""
    mark = _MARK.encode()
    try:
        if not path.is_file():
            return False
        with opened(path) as file:
            if path.suffix == ".png":
                return b"tEXtSoftware\0" + mark in file.read(1024)
            file.seek(-len(mark), os.SEEK_END)
            return file.read() == mark
    except OSError:
        return False


def _same(path: AnyPath, other: AnyPath) -> bool:
    if _real(path) == _real(other):
        return True
    if is_bucket(path) or is_bucket(other):
        return False
    return path.exists() and other.exists() and os.path.samefile(path, other)  # hard links, or case that is ignored


def _within(path: AnyPath, folder: AnyPath) -> bool:
    return is_bucket(path) == is_bucket(folder) and _real(path).is_relative_to(_real(folder))


def _real(path: AnyPath) -> AnyPath:
    return path if is_bucket(path) else Path(os.path.realpath(path))

"""ImageNet64: ILSVRC-2012 shrunk to 64 x 64 (Chrabaszcz, Loshchilov, Hutter 2017, arXiv 1707.08819).

1,281,167 training images in ten files and 50,000 in `val_data`, which is the test part here. A file is a pickled dict
or an .npz of the same: `data` uint8 (N, 12288), the red, green and blue planes row by row; `labels` in 1 .. 1000.

The published files cannot be read by index. They are written once as .npy (15.7 GB for the training part), which
is then mapped into memory; afterwards the published files are not needed.
"""

import codecs
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from smallnets.data.arrays import Arrays, Part
from smallnets.data.files import FileState, unpickling
from smallnets.data.source import Source
from smallnets.errors import RunError

SIZE = 64
NUM_CLASSES = 1000
_FILES: dict[Part, list[str]] = {
    "train": [f"train_data_batch_{i}" for i in range(1, 11)],
    "test": ["val_data"],
}
_HEADER_BYTES = 128  # of an .npy file (version 1.0) with a shape of ordinary length
_PAGE = "https://image-net.org/download-images (Downsampled ImageNet, 64 x 64)"


@final
@dataclass(frozen=True)
class Batches(Source):
    """The published files in `root`; what is made of them is written into `cache` (default: `root`)."""

    root: str | Path
    cache: str | Path | None = None

    def read(self, part: Part) -> Arrays:
        """The images of a part, uint8 (N, 3, 64, 64), mapped from the converted file, which is made if need be.

        Classes are named by their published numbers, "1" .. "1000"; labels are these numbers less 1.
        """
        self.convert(part)
        images, labels = self._converted(part)
        # Copy-on-write: torch wants a writable array, and the file stays as it is whatever is written to it.
        mapped = np.load(images, mmap_mode="c")
        classes = [str(c) for c in range(1, NUM_CLASSES + 1)]
        return Arrays(torch.from_numpy(mapped), torch.from_numpy(np.load(labels)), classes, mapped=True)

    def prepare(self) -> None:
        """Converts the training part, so that ranks that read at the same time find it."""
        self.convert("train")

    def convert(self, part: Part) -> None:
        """Writes a part's images and labels as .npy, unless they are there.

        Each is written under another name and then renamed: a half-written file is never taken for a whole one.

        Raises:
            RunError: a published file is missing or damaged, or the folder cannot be written.
        """
        images, labels = self._converted(part)
        if images.is_file() and labels.is_file():
            return
        published = self._published(part)
        for path, state, _ in published:
            if state == "missing":
                raise RunError(
                    f"ImageNet64: {path} (or {path.name}.npz) is missing; it is given to registered users only. Get it"
                    f" from {_PAGE} and set --data.root to its folder"
                )
        try:
            images.parent.mkdir(parents=True, exist_ok=True)
            _write(_batches(published), images, labels)
        except OSError as error:
            raise RunError(
                f"ImageNet64: {images.parent} cannot hold the converted images ({error.strerror or error});"
                " set --data.cache to a folder that can (15.7 GB)"
            ) from error

    def verify(self) -> list[FileState]:
        """The files of each part: the converted ones where they are there, else the published ones.

        No md5 sums were published with the set; images and labels are checked when they are converted.
        """
        found: list[FileState] = []
        for part in _FILES:
            pair = self._converted(part)
            found += [FileState(p, "ok") for p in pair] if all(p.is_file() for p in pair) else self._published(part)
        return found

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """Computed once and kept in a JSON file beside the converted training images."""
        path = self._converted("train")[0].with_name("imagenet64-computed.json")
        known = json.loads(path.read_text()) if path.is_file() else {}
        if key not in known:
            known[key] = compute()
            with _Renamed(path) as file:
                file.write(json.dumps(known, indent=1).encode())
        return known[key]

    def _published(self, part: Part) -> list[FileState]:
        """The published files of a part with their states; a pickle is taken before an .npz."""
        found = []
        for name in _FILES[part]:
            paths = [Path(self.root) / name, Path(self.root) / f"{name}.npz"]
            there = [p for p in paths if p.is_file()]
            found.append(FileState(there[0], "ok") if there else FileState(paths[0], "missing"))
        return found

    def _converted(self, part: Part) -> tuple[Path, Path]:
        folder = Path(self.cache or self.root)
        return folder / f"imagenet64-{part}-images.npy", folder / f"imagenet64-{part}-labels.npy"


def _batches(files: list[FileState]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Images (n, 3, 64, 64) and labels (n,) from 0, of one published file after the other."""
    for path, _, _ in files:
        try:
            content = _load(path)
            data, labels = np.asarray(content["data"]), np.asarray(content["labels"], dtype=np.int64)
        except (pickle.UnpicklingError, ValueError, KeyError, EOFError, AttributeError, IndexError) as error:
            raise RunError(f"ImageNet64: {path} is damaged: it is not a published batch ({error})") from error
        if data.dtype != np.uint8 or data.shape != (len(labels), 3 * SIZE * SIZE):
            raise RunError(
                f"ImageNet64: {path} holds data {data.dtype} {data.shape} for {len(labels)} labels;"
                f" uint8 (N, {3 * SIZE * SIZE}) is expected"
            )
        if len(labels) and not (labels.min() >= 1 and labels.max() <= NUM_CLASSES):
            raise RunError(f"ImageNet64: {path} has labels {labels.min()} .. {labels.max()}; 1 .. 1000 are expected")
        yield data.reshape(-1, 3, SIZE, SIZE), labels - 1


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of numpy arrays and plain values, and runs nothing else that a pickle may ask for."""

    _ALLOWED = (
        *((f"numpy.{core}.multiarray", n) for core in ("core", "_core") for n in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        *(("numpy", n) for n in ("ndarray", "dtype")),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode  # protocol 2 writes the bytes of an array through it
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch of images")
        return super().find_class(module, name)


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path) as content:
            return {key: content[key] for key in ("data", "labels")}
    with path.open("rb") as file, unpickling():
        return _ArraysOnly(file, encoding="latin1").load()


def _write(batches: Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]], images: Path, labels: Path) -> None:
    """Writes one published file after the other, so that no more than one is held in memory."""
    with _Renamed(images) as file, _Renamed(labels) as label_file:
        file.write(bytes(_HEADER_BYTES))
        all_labels = []
        for data, some in batches:
            file.write(np.ascontiguousarray(data).data)
            all_labels.append(some)
        total = np.concatenate(all_labels)
        # How many images there are is known only now.
        file.seek(0)
        shape = (len(total), 3, SIZE, SIZE)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if file.tell() != _HEADER_BYTES:
            raise AssertionError(f"an .npy header of {file.tell()} bytes where {_HEADER_BYTES} were left")
        np.save(label_file, total)


class _Renamed:
    """A new file beside `target` that gets its name when the block ends well, and is removed when it does not."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> IO[bytes]:
        handle, self._name = tempfile.mkstemp(".part", self._target.name, self._target.parent)
        self._file = os.fdopen(handle, "wb")
        return self._file

    def __exit__(self, kind: object, *rest: object) -> None:
        self._file.close()
        if kind is None:
            Path(self._name).chmod(0o644)  # mkstemp's files are their owner's alone
            Path(self._name).replace(self._target)
        else:
            Path(self._name).unlink()

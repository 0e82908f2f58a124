"""DCP's files: written durably, and read without running the pickle that `.metadata` is."""

from __future__ import annotations

import io
import os
import pickle
from typing import IO, TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.metadata import Metadata

from spotd_trainer.archive import DurableFile, Pace, verify_stream
from spotd_trainer.errors import CheckpointError, TornCheckpointError

if TYPE_CHECKING:
    from pathlib import Path


class _Streams(FileSystem):
    """DCP's file system, writing as this library does: durable, paced, to be cancelled."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def create_stream(self, path: Any, mode: str) -> Any:
        if mode == "wb":
            return DurableFile(path, self._pace)
        return super().create_stream(path, mode)


class PacedWriter(FileSystemWriter):
    """Writes DCP's layout through `DurableFile`."""

    def __init__(self, path: Path, pace: Pace) -> None:
        super().__init__(path, sync_files=True)
        self.fs = _Streams(pace)


class _Slice(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"a position before the beginning: {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        wanted = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._offset + self._position)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


_MAY_BUILD = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.serialization", "_get_layout"),
    # DCP notes its own directory as a path object.
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),
}


class _Unpickler(pickle.Unpickler):
    """Builds the classes of DCP's metadata and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MAY_BUILD:
            return super().find_class(module, name)
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        raise pickle.UnpicklingError(f"{module}.{name}")


class SafeReader(FileSystemReader):
    """Reads DCP's layout without running the pickle that `.metadata` is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.directory = path

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """Raises TornCheckpointError or CheckpointError."""
        path = self.directory / ".metadata"
        try:
            metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
        except FileNotFoundError:
            raise TornCheckpointError(path, "expected a file, found none") from None
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                path, f"expected DCP's metadata, found {error}", hint="nothing was executed"
            ) from error
        except (EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
            raise TornCheckpointError(path, f"expected DCP's metadata: {error!r}") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(path, f"expected DCP's metadata, found {type(metadata)}")
        return metadata

    def verify(self, metadata: Metadata, rank: int, size: int) -> None:
        """Check every `size`-th tensor's checksum, starting at `rank`.

        Raises:
            TornCheckpointError: naming shard and tensor.
        """
        places = sorted(
            metadata.storage_data.items(), key=lambda p: (p[1].relative_path, p[1].offset)
        )
        for index, place in places[rank::size]:
            path = self.directory / place.relative_path
            if "/" in place.relative_path:
                raise CheckpointError(path, "expected a plain file name", key=index.fqn)
            try:
                with path.open("rb") as file:
                    self._verify_part(path, file, place, index.fqn)
            except FileNotFoundError:
                raise TornCheckpointError(path, "expected a shard, found none") from None

    def _verify_part(self, path: Path, file: IO[bytes], place: Any, key: str) -> None:
        end = place.offset + place.length
        if (size := file.seek(0, os.SEEK_END)) < end:
            raise TornCheckpointError(path, f"expected at least {end} bytes, found {size}", key=key)
        verify_stream(path, io.BufferedReader(_Slice(file, place.offset, place.length)), key)

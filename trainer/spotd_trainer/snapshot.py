"""A copy of the state at one step, made while the loop already computes the next.

Theory of operation. Between two optimizer steps nobody writes to the parameters or to the
optimizer's state: forward and backward only read them. So copying them needs no pause. Only what
other code may touch (buffers, extra state, RNGs: small) is copied at once; the rest is copied by
the saving thread, and the next `optimizer.step` waits, in a hook, for what is still missing.
The copies go into buffers that are kept from save to save: one extra copy of the state, whose
pages are mapped (and, for CUDA, pinned) once.

A program that changes parameters by other means in between is found out, and its saves are then
copied at once. The tensors' version counters tell; where it went by `.data`, as code does that
swaps averaged weights in for an evaluation, they do not, but a few values of each tensor, set aside
before the loop went on and compared with the copy, do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from spotd_trainer.state import tensors_of

if TYPE_CHECKING:
    from collections.abc import Iterable


def step_back() -> None:
    """Let this thread have the CPU after the loop's: a save is in no hurry, training is."""
    if sys.platform == "linux":
        # By thread, as Linux has it (setpriority(2), "C library/kernel differences").
        thread = threading.get_native_id()
        # From where it is: a program started with `nice -n 10` may not go up to 5.
        lower = min(19, os.getpriority(os.PRIO_PROCESS, thread) + 5)
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, lower)


_SAMPLED = 4


class StateChangedError(RuntimeError):
    """Parameters were written to between two optimizer steps while they were being copied."""


@dataclass(slots=True)
class _Copy:
    key: str
    source: torch.Tensor
    target: torch.Tensor
    version: int
    sample: torch.Tensor


@dataclass(slots=True)
class Snapshot:
    """State whose tensors are copies; complete once `finish` has returned."""

    state: dict[str, Any]
    _later: list[_Copy]
    _stream: torch.cuda.Stream | None
    _enqueued: threading.Event = field(default_factory=threading.Event)
    _copied: torch.cuda.Event | None = None
    _error: BaseException | None = None

    def finish(self) -> None:
        """Copy what was left for later. Called once, by the saving thread.

        Raises:
            StateChangedError: the copy is of no step.
        """
        try:
            if self._stream is not None:
                with torch.cuda.stream(self._stream):
                    self._copy_all()
                    self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    self._copied.record(self._stream)
            else:
                self._copy_all()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._enqueued.set()
        if self._copied is not None:
            self._copied.synchronize()
        # The stream that has waited for the samples to be taken.
        ours = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        with ours:
            for copy in self._later:
                if not _same_bits(_sample(copy.target, copy.source), copy.sample.cpu()):
                    raise StateChangedError(copy.key)
        # What is still held would keep a model alive that the program has dropped.
        self._later = []

    def _copy_all(self) -> None:
        for copy in self._later:
            copy.target.copy_(copy.source, non_blocking=True)
        for copy in self._later:
            if version_of(copy.source) != copy.version:
                raise StateChangedError(copy.key)

    def give_up(self) -> None:
        """The save failed: nothing holds the optimizer back any longer."""
        self._enqueued.set()
        self._later = []

    def wait(self) -> float:
        """Hold back the optimizer until its parameters are copied; return the seconds waited.

        On CUDA the program does not wait at all: the device's stream does.
        """
        began = time.perf_counter()
        self._enqueued.wait()
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
        return time.perf_counter() - began


class Stager:
    """Makes snapshots, one at a time, into buffers it keeps."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._preparing: threading.Thread | None = None

    def prepare(self, state: dict[str, Any]) -> None:
        """Map the buffers for a state like this beside the loop, before the first save needs them.

        Mapping memory takes longer than copying into it.
        """
        self._buffers = {}
        sources = tensors_of(state, "state")
        self._preparing = threading.Thread(
            target=self._prepare, args=(sources, self._buffers), name="spotd-prepare", daemon=True
        )
        self._preparing.start()

    def _prepare(self, sources: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> None:
        step_back()
        for key, source in sources.items():
            local = getattr(source, "_local_tensor", source)
            buffer = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)
            if self._buffers is not buffers:
                return
            buffers[key] = buffer if local.is_cuda else buffer.zero_()

    def take(self, state: dict[str, Any], later: Iterable[torch.Tensor] = ()) -> Snapshot:
        """Copy `state`; tensors that share memory with one in `later` are left to `finish`."""
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None
        on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if on_cuda and self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        work = _Work(self._buffers, {_memory(tensor) for tensor in later})
        copied = work.copy(state, "state")
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
            if work.now:
                torch.cuda.current_stream().synchronize()
        self._buffers = work.used
        return Snapshot(copied, work.later, self._stream)

    def release(self) -> None:
        """Give the buffers' memory back."""
        self._buffers = {}
        self._preparing = None


class _Work:
    """One walk over the state."""

    def __init__(self, buffers: dict[str, torch.Tensor], later: set[int]) -> None:
        self._buffers = buffers
        self._later_memory = later
        self._seen: dict[tuple[Any, ...], torch.Tensor] = {}
        self.used: dict[str, torch.Tensor] = {}
        self.later: list[_Copy] = []
        self.now = 0

    def copy(self, value: Any, key: str) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, key)
        if isinstance(value, dict):
            kind = OrderedDict if isinstance(value, OrderedDict) else dict
            return kind((k, self.copy(v, f"{key}.{k}")) for k, v in value.items())
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(self.copy(v, f"{key}[{i}]") for i, v in enumerate(value))
        return value

    def _tensor(self, source: torch.Tensor, key: str) -> torch.Tensor:
        local = getattr(source, "_local_tensor", None)
        if isinstance(local, torch.Tensor):
            # A shard of a DTensor: the same shard of the same whole, with its values on the CPU.
            shard = source.detach()
            shard._local_tensor = self._tensor(local, key)  # type: ignore[attr-defined]  # noqa: SLF001
            return shard
        source = source.detach()
        same = (_memory(source), source.storage_offset(), source.shape, source.stride())
        identity = (*same, source.dtype)
        if source.numel() and identity in self._seen:
            # Tied weights stay tied in the file.
            self.used[key] = self._seen[identity]
            return self._seen[identity]
        target = self._buffer(source, key)
        if _memory(source) in self._later_memory:
            sample = _sample(source, target).clone()
            self.later.append(_Copy(key, source, target, version_of(source), sample))
        else:
            target.copy_(source, non_blocking=True)
            self.now += source.is_cuda
        self._seen[identity] = target
        return target

    def _buffer(self, source: torch.Tensor, key: str) -> torch.Tensor:
        old = self._buffers.get(key)
        if old is not None and (old.shape, old.dtype) == (source.shape, source.dtype):
            self.used[key] = old
            return old
        new = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
        self.used[key] = new
        return new


def _sample(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A view of a few values spread over the memory; none where `like` lies otherwise in it."""
    count = min(_SAMPLED, tensor.numel()) if tensor.stride() == like.stride() else 0
    stride = max(1, tensor.numel() // max(1, count))
    return tensor.as_strided((count,), (stride,), tensor.storage_offset())


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    # As bytes: a NaN equals no other NaN.
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def version_of(tensor: torch.Tensor) -> int:
    """How often the tensor was written to in place."""
    return int(tensor._version)  # noqa: SLF001 - documented under this name


def _memory(tensor: torch.Tensor) -> int:
    local = getattr(tensor, "_local_tensor", tensor)
    return int(local.untyped_storage().data_ptr())

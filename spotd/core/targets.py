"""Which processes of a trainer's tree get a signal: a decision over a snapshot.

What was measured and why (torchrun, Lightning, HF Trainer, `bash -c`, `accelerate
launch`): a stop signal to every process kills DataLoader workers first and loses the
emergency checkpoint; to the command's own process alone it kills a wrapper and orphans
the trainer below it; to torchrun it makes the agent kill whole groups after 30 s; to a
program that does not catch it, it is only a kill. So: the topmost processes that catch
it, ranks in place of their agent, never a DataLoader worker.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DATALOADER_WORKER = "pt_data_worker"  # torch.utils.data names its workers since 2.4

# Launchers of several ranks give each its number; what has none of these is no rank.
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "busybox"})
# None of these has anything to save: what they catch they pass on, or die of.
_LAUNCHERS = frozenset({
    "torchrun", "accelerate", "accelerate-launch", "deepspeed", "composer", "horovodrun",
    "mpirun", "mpiexec", "orterun", "srun",
    "uv", "uvx", "poetry", "pdm", "hatch", "pipenv", "pixi", "conda", "mamba", "micromamba",
    "sudo", "doas", "su", "runuser", "setpriv", "timeout", "nice", "env", "numactl", "taskset",
    "tini", "dumb-init", "catatonit", "docker-init", "nsys", "ncu", "py-spy", "strace",
})  # fmt: skip
_LAUNCHER_MODULES = ("torch.distributed.run", "torch.distributed.launch",
                     "accelerate.commands.launch", "accelerate.commands.accelerate_cli",
                     "deepspeed.launcher")  # fmt: skip
_OPTIONS_WITH_VALUE = ("-X", "-W")  # of python
_PROGRAM_WORDS = 2
_REAL_TIME_SIGNALS = sum(1 << (n - 1) for n in range(35, 65))  # 32 to 34 are the C library's


@dataclass(frozen=True, slots=True)
class Process:
    """One process, as /proc showed it.

    Attributes:
        pid: Its number.
        parent: Its parent's.
        comm: Its name in the kernel (15 bytes).
        command: Its command line.
        caught: `SigCgt` of /proc/PID/status: bit n-1 stands for signal n.
        ignored: `SigIgn`, likewise.
        rank: The value of the first of `RANK_VARIABLES` in its environment, or None.
    """

    pid: int
    parent: int
    comm: str
    command: tuple[str, ...]
    caught: int
    ignored: int = 0
    rank: str | None = None


def catches(process: Process, signal: int) -> bool:
    """Says whether a handler of the program's own will see the signal.

    Go's runtime installs a handler for every signal there is and then dies of SIGTERM all
    the same, so a process that catches all real-time signals is not believed.
    """
    if process.caught & _REAL_TIME_SIGNALS == _REAL_TIME_SIGNALS:
        return False
    bit = 1 << (signal - 1)
    return bool(process.caught & bit) and not process.ignored & bit


def choose(
    processes: Sequence[Process], main: int, signal: int, *, target: str, purpose: str
) -> tuple[int, ...]:
    """Returns the pids that get the signal, topmost first; empty when nobody catches it.

    Args:
        processes: The trainer's living processes.
        main: The pid of the command's own process.
        signal: The signal's number.
        target: `trainer.signal_target`: "auto", "main" or "group".
        purpose: "stop" or "checkpoint". A signal that asks for a checkpoint goes only to
            those that catch it, whatever the target: it would kill the others.
    """
    tree = _Tree(processes, main)
    if target == "main":
        chosen = [p for p in processes if p.pid == main and catches(p, signal)]
    elif target == "group":
        chosen = tree.in_order()
        if purpose != "stop":
            chosen = [p for p in chosen if catches(p, signal)]
        elif not any(catches(p, signal) for p in chosen):
            chosen = []
    else:
        chosen = tree.topmost(signal)
    return tuple(p.pid for p in chosen)


class _Tree:
    """The snapshot as parents and children, those of the main process first."""

    def __init__(self, processes: Sequence[Process], main: int) -> None:
        self._by_pid = {p.pid: p for p in processes}
        self._children: dict[int, list[Process]] = {}
        for process in processes:
            if process.parent in self._by_pid and process.pid != main:
                self._children.setdefault(process.parent, []).append(process)
        self._main = self._by_pid.get(main)
        self._orphans = [
            p for p in processes if p.pid != main and p.parent not in self._by_pid
        ]  # double-forked, or left by a parent that died

    def in_order(self) -> list[Process]:
        """Everything, parents before children."""
        roots = ([self._main] if self._main else []) + self._orphans
        return [p for root in roots for p in self._walk(root)]

    def topmost(self, signal: int) -> list[Process]:
        """The rule `auto`.

        Orphans count only when nobody below the main process catches it: next to a
        trainer that does, they are its helpers (a metrics service, a cache server).
        """
        if self._main:
            found = list(self._search(self._main, signal))
            if found:
                return found
        return [p for root in self._orphans for p in self._search(root, signal)]

    def _search(self, process: Process, signal: int) -> Iterator[Process]:
        if self._is_worker(process):
            return
        ranks = [c for c in self._children.get(process.pid, ()) if _starts_rank(process, c)]
        if ranks:
            for rank in ranks:
                yield from self._search(rank, signal)
        elif self._may_be_signalled(process, signal):
            yield process
        else:
            for child in self._children.get(process.pid, ()):
                yield from self._search(child, signal)

    def _may_be_signalled(self, process: Process, signal: int) -> bool:
        if not catches(process, signal) or _is_launcher(process):
            return False
        # A shell catches SIGINT for its own purposes and tells nobody; so it does with a
        # trap, but a trap on any other signal is the user's own doing.
        return not (signal == signals.SIGINT and _is_shell(process))

    def _is_worker(self, process: Process) -> bool:
        """A DataLoader worker, or another fork of its parent's program.

        A shell's subshell looks the same, and the trainer may well be below it.
        """
        if process.comm == DATALOADER_WORKER:
            return True
        parent = self._by_pid.get(process.parent)
        return (
            parent is not None
            and process.command == parent.command
            and not _is_shell(process)
            and not _starts_rank(parent, process)
        )

    def _walk(self, process: Process) -> Iterator[Process]:
        yield process
        for child in self._children.get(process.pid, ()):
            yield from self._walk(child)


def _starts_rank(parent: Process, child: Process) -> bool:
    return child.rank is not None and child.rank != parent.rank


def _is_shell(process: Process) -> bool:
    """A script run by its first line has the script's name, but the shell's command line."""
    program = process.command[0].rsplit("/", 1)[-1] if process.command else ""
    return process.comm in _SHELLS or program.lstrip("-") in _SHELLS


def _is_launcher(process: Process) -> bool:
    """Torchrun and its like: whatever they catch, the trainer is below them."""
    return any(_names_launcher(word) for word in _program_words(process.command))


def _program_words(command: Iterable[str]) -> list[str]:
    """The words that say which program runs: the interpreter, and its script or module."""
    words: list[str] = []
    before = ""
    for word in command:
        if word == "-c":
            break
        if not word.startswith("-") and before not in _OPTIONS_WITH_VALUE:
            words.append(word)
        if len(words) == _PROGRAM_WORDS:
            break
        before = word
    return words


def _names_launcher(word: str) -> bool:
    return word.rsplit("/", 1)[-1] in _LAUNCHERS or word.startswith(_LAUNCHER_MODULES)

"""The core decides and does nothing: it cannot even reach a file, a socket or a clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import spotd.core

CORE = sorted(Path(spotd.core.__file__).parent.glob("*.py"))
# What the core may import from the standard library; none of it does I/O or reads a clock.
NAMES = """
__future__ ast base64 binascii codecs collections contextlib dataclasses datetime enum fnmatch
functools heapq io itertools json math operator pickletools posixpath re signal string struct
typing unicodedata uuid zlib
"""
PURE = set(NAMES.split())


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_the_core_imports_nothing_that_does_io(path):
    foreign = {
        name
        for name in imported(path)
        if name.split(".")[0] not in PURE
        and not name.startswith("spotd.core")
        and name not in ("spotd", "spotd.errors")
    }
    assert foreign == set()


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_the_core_calls_nothing_that_does_io(path):
    called = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called & {"open", "print", "input", "exec", "eval", "__import__"} == set()


def test_importing_the_lifecycle_loads_no_socket_and_no_subprocess():
    code = (
        "import sys; before = set(sys.modules); import spotd.core.lifecycle; "
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(spotd.core.__file__).parents[2],
    ).stdout.split()  # fmt: skip
    assert not {"socket", "subprocess", "threading", "requests", "boto3"} & set(loaded)

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("scenarios")


def pytest_addoption(parser):
    parser.addoption("--golden-update", action="store_true", help="write the golden stories anew")

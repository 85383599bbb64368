"""The fixtures of the other tests; none of their time limits."""

from __future__ import annotations

pytest_plugins = ("tests.conftest",)

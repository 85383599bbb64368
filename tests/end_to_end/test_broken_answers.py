"""Answers that HTTP does not have: tried again like any broken answer, and never taken for one that it has."""

from __future__ import annotations

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.tool import MirrorTool

KINDS = ["GET tags", "GET manifest", "GET blob", "POST upload", "PUT upload", "PUT manifest"]


@pytest.mark.parametrize("status", ["099", "600", "999", "000"])
def test_a_number_that_is_no_status_is_tried_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool, status: str
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    rules = [
        registry.fault(kind, raw=f"HTTP/1.1 {status} Odd\r\nContent-Length: 0\r\n\r\n".encode())
        for registry, kinds in ((source, KINDS[:3]), (target, KINDS[3:]))
        for kind in kinds
    ]
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert [1] * len(rules) == [rule.hits for rule in rules]

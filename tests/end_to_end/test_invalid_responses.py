"""Invalid HTTP responses: they are retried, and never taken for a valid response."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.faults import FOREVER
from tests.support.tool import MirrorTool

KINDS = ["GET tags", "GET manifest", "GET blob", "POST upload", "PUT upload", "PUT manifest"]


@pytest.mark.parametrize("status", ["099", "999"])
def test_an_invalid_status_code_is_retried(scripted: ScriptedFactory, mirror_run: MirrorTool, status: str) -> None:
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


# docker-registry 2.8.3 on a full disk: POST of an upload, and the PUT of a body.
DRIVER = {"DriverName": "filesystem", "Enclosed": {"Op": "write", "Path": "/x/immutable/startedat", "Err": 28}}
NO_SPACE = "write /x/data: no space left on device"


def full(detail: object) -> bytes:
    return json.dumps({"errors": [{"code": "UNKNOWN", "message": "unknown error", "detail": detail}]}).encode()


def test_a_full_target_is_reported_with_its_own_message(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, targets = scripted("source"), [scripted() for _ in range(4)]
    loaded(source, size=100)
    rules: list[tuple[str, dict[str, Any], str]] = [
        ("POST upload", {"status": 500, "body": full(DRIVER)}, '"Err": 28'),
        ("PUT upload", {"status": 500, "body": full(NO_SPACE)}, NO_SPACE),
        ("PUT manifest", {"status": 500, "body": full(DRIVER)}, '"Err": 28'),
        ("PUT upload", {"status": 507}, "507 Insufficient Storage"),
    ]
    for target, (kind, rule, _) in zip(targets, rules, strict=True):
        target.fault(kind, times=FOREVER, **rule)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app" for target in targets]}]
    mirror_run.config(mirrors, source, *targets)
    mirror_run.sync(expect=1)
    errors = {image["target"]: image["error"] for image in mirror_run.report()["images"]}
    for target, (kind, _, said) in zip(targets, rules, strict=True):
        error = errors[f"{target.host}/app:v1"]
        assert ("target_full", True) == (error["code"], error["retryable"])
        assert said in error["message"]
        assert "free space" in error["message"]
        asked = Counter(seen.reference for seen in target.requests() if seen.kind == kind)
        most = 5 * (6 if kind == "POST upload" else 1)
        assert max(asked.values()) <= most, "no more than the attempts of the retry policy"

from __future__ import annotations

import pytest

from mirror.registry.http.headers import Headers
from mirror.registry.http.quota import parse_quota
from mirror.util.host_use import Quota


@pytest.mark.parametrize(
    ("remaining", "limit", "quota"),
    [
        ("76;w=21600", "100;w=21600", Quota(76, 100)),
        ("0;w=21600", None, Quota(0, None)),
        ("76", "many", Quota(76, None)),
        (None, "100;w=21600", None),
        ("-1", None, None),
        ("9" * 40, None, None),
        ("", "100", None),
    ],
)
def test_the_quota_of_a_response(remaining: str | None, limit: str | None, quota: Quota | None) -> None:
    fields = [("RateLimit-Remaining", remaining), ("RateLimit-Limit", limit)]
    assert quota == parse_quota(Headers((name, value) for name, value in fields if value is not None))

"""Registries that answer 429 or 503 for a long time."""

from __future__ import annotations

from mirror.util.retry_policy import Policy
from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded
from tests.registries.faults import FOREVER
from tests.support.tool import MirrorTool

TAGS = 30


def test_a_source_that_answers_429_after_all_retries_gets_no_more_requests_and_the_rest_continues(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """`Retry-After: 0` makes the retries neither faster nor more. The same holds for a host that blobs are redirected
    to."""
    limited, well, target = scripted("limited"), scripted("well"), scripted("target")
    redirecting, storage = scripted("redirecting"), scripted("storage")
    loaded(redirecting, repository="third")
    redirecting.features.blob_redirect = lambda digest: f"{storage.url}/v2/bucket/blobs/{digest}"
    storage.fault("GET blob", status=429, times=FOREVER)
    loaded(limited, *(f"v{number}" for number in range(TAGS)))
    loaded(well, "v1", "v2", repository="other")
    busy = limited.fault("GET manifest", status=429, headers=[("Retry-After", "0")], times=FOREVER)
    mirrors = [
        {"source": f"{limited.host}/app", "targets": [f"{target.host}/app"]},
        {"source": f"{well.host}/other", "targets": [f"{target.host}/other"]},
        {"source": f"{redirecting.host}/third", "targets": [f"{target.host}/third"]},
    ]
    mirror_run.config(mirrors, limited, well, redirecting, target, registries={limited.host: {"parallel": 4}})
    ran = mirror_run.sync(expect=1)
    assert_synced(well, target, "other")
    images = mirror_run.report()["images"]
    failed = [image for image in images if image["result"] == "failed"]
    assert TAGS + 1 == len(failed)
    assert {("rate_limited", 429, True)} == {
        (image["error"]["code"], image["error"]["status"], image["error"]["retryable"]) for image in failed
    }
    assert busy.hits <= 4 * Policy().attempts, "those that were under way; no new ones"
    assert any(f"{limited.host} limits requests: " in image["error"]["message"] for image in failed)
    hosts = {line["host"] for line in mirror_run.log() if line.get("field_event") == "host_limited"}
    assert {limited.host, storage.host} == hosts
    assert "is down" not in ran.text
    assert "longest pause" in ran.out


def test_a_source_whose_quota_is_used_up_gets_no_more_manifest_requests_and_is_still_compared(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """Docker Hub counts only GETs of manifests, not HEADs: unchanged images still count as up to date."""
    source, target = scripted("source"), scripted("target")
    names = [f"v{number}" for number in range(TAGS)]
    graph = loaded(source, *names)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, source, target)
    target.load("app", graph)
    kept = names[:3]
    for name in names[3:]:
        del target.storage.repositories["app"].tags[name]
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'
    used_up = source.fault("GET manifest", status=429, body=body, times=FOREVER)
    mirror_run.sync(expect=1)
    results = mirror_run.results()
    assert {f"{target.host}/app:{name}" for name in kept} == {
        name for name, result in results.items() if result == "up-to-date"
    }
    errors = [image["error"] for image in mirror_run.report()["images"] if "error" in image]
    assert {("rate_limited", True)} == {(error["code"], error["retryable"]) for error in errors}
    assert used_up.hits <= 8, "those that were under way"


def test_a_target_that_always_answers_503_gets_the_attempts_of_the_retry_policy(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    past = ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")
    busy = target.fault("PUT manifest", reference="v1", status=503, headers=[past], times=FOREVER)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
    mirror_run.sync(expect=1)
    assert Policy().attempts == busy.hits

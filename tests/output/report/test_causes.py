"""Failures are grouped by their cause, and each cause is shown as one block of lines."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import AuthError, MirrorError, NotFound, Refused, RemoteError
from mirror.output.report import Causes, FailedImage, Failure, cause_lines
from mirror.output.report.remedies import REMEDIES
from tests.support.tool import ROOT

CONFIG = Path("/etc/mirror/prod.yaml")
SOURCE, TARGET = "docker.io", "registry.example.com"
USER = "user acme, password from env HUB_TOKEN"


def failed(number: int, error: MirrorError, *, repository: str = "hub/app", **more: Any) -> FailedImage:
    failure = Failure.from_error(error, SOURCE, TARGET)
    names = f"{SOURCE}/library/app:v{number}", f"{TARGET}/{repository}:v{number}"
    return FailedImage(*names, **{"result": "failed", "failure": failure, **more})


def password(repository: str = "hub/app", account: str = USER) -> AuthError:
    what = f"{TARGET}/{repository} (pull,push): {TARGET} does not accept {account}"
    hint = "check the user name, the secret and the user's permissions"
    return AuthError(what, status=401, host=TARGET, account=account, hint=hint)


def lines_of(*failures: FailedImage, width: int = 80) -> list[str]:
    causes = Causes()
    for one in failures:
        causes.add(one)
    return cause_lines(causes, config=CONFIG, width=width, details="report.json")


def test_a_thousand_images_behind_one_password_are_one_block() -> None:
    failures = [failed(n, password(f"hub/app-{n % 50}"), repository=f"hub/app-{n % 50}") for n in range(1000)]
    lines = lines_of(*failures)
    assert [
        f"failed: 1000 images: {TARGET} does not accept user acme, password",
        "    from env HUB_TOKEN (auth_failed, 401)",
        "    hub/app-0:v0, hub/app-1:v1, hub/app-10:v10 and 997 more",
        "    hint: check the user name, the secret and the user's permissions",
        "details: report.json",
    ] == lines


def test_the_blocks_do_not_depend_on_the_order_of_failures() -> None:
    failures = [failed(n, RemoteError(f"GET https://x/{n}: 500 Oops: {n % 3}", status=500)) for n in range(40)]
    shuffled = random.Random(1).sample(failures, len(failures))
    assert lines_of(*failures) == lines_of(*shuffled)
    assert "failed: 40 images: 500 Oops (bad_response, 500)" == lines_of(*failures)[0]


@pytest.mark.parametrize(
    "other",
    [
        password(account="user other, password from file /pw"),
        RemoteError("429", status=429, host=TARGET),
        RemoteError("500", status=500, host=TARGET),
        RemoteError("500", status=500, host=SOURCE),
        NotFound("gone", hint="push it again"),
    ],
    ids=["account", "code", "status", "host", "hint"],
)
def test_failures_that_differ_in_host_account_status_code_or_hint_have_different_causes(other: MirrorError) -> None:
    causes = Causes()
    for number, error in enumerate([password(), RemoteError("x", status=502, host=TARGET), NotFound("gone"), other]):
        causes.add(failed(number, error))
    assert [1, 1, 1, 1] == [cause.count for cause in causes]


def test_hints_that_differ_only_in_names_and_digests_are_one_cause() -> None:
    errors = [
        Refused(
            f"blob {n}", hint=f"delete docker/registry/v2/blobs/sha256/{n}{n}/{str(n) * 64}/data", code="target_lied"
        )
        for n in range(5)
    ]
    causes = Causes()
    for number, error in enumerate(errors):
        causes.add(failed(number, error))
    (cause,) = causes
    assert (5, errors[0].hint, True) == (cause.count, cause.hint, cause.hints_differ)
    lines = cause_lines(causes, config=CONFIG, width=300)
    assert f"    hint for {SOURCE}/library/app:v0: {errors[0].hint}" in lines


def test_a_block_without_a_common_message_has_the_messages_as_examples() -> None:
    errors = [NotFound(f"{SOURCE}/library/app:v{n} does not exist", status=404) for n in range(5)]
    assert [
        "failed: 5 images: docker.io (not_found, 404)",
        "    library/app:v0 does not exist",
        "    library/app:v1 does not exist",
        "    library/app:v2 does not exist and 2 more",
        "    hint: check the name; if it is the repository of a target, create it",
        "details: report.json",
    ] == lines_of(*(failed(n, error) for n, error in enumerate(errors)))


def test_long_messages_of_many_failures_are_cut_between_words() -> None:
    """report.json has the whole messages."""
    same = [RemoteError(f"{TARGET}: {'the policy rejects it ' * 25}", status=400, host=TARGET) for _ in range(1000)]
    differ = [RemoteError(f"request {n} {'was rejected ' * 40}", status=400, host=TARGET) for n in range(1000)]
    for errors in (same, differ):
        lines = lines_of(*(failed(n, error) for n, error in enumerate(errors)))
        assert len(lines) <= 7
        assert 1 == "".join(lines).count("…")
        assert [] == [line for line in lines if len(line) > 80]
        assert 1 == sum(line.endswith(" and 997 more") for line in lines)
        words = {word for line in lines for word in line.split() if word[:3] in ("rej", "pol", "was")}
        assert words <= {"rejected", "rejects", "policy", "was"}


def test_a_long_message_that_begins_with_a_digest_is_printed_for_the_first_example() -> None:
    digests = [f"sha256:{number:064x}" for number in range(40)]
    errors = [RemoteError(f"{digest} has 36 bytes instead of 10263", host=TARGET) for digest in digests]
    assert [
        f"failed: 40 images: {TARGET} (bad_response)",
        "    hub/app:v0:",
        f"      {digests[0]}",
        "      has 36 bytes instead of 10263",
        "    hub/app:v1, hub/app:v10 and 37 more",
    ] == lines_of(*(failed(n, error) for n, error in enumerate(errors)))[:5]
    few = lines_of(*(failed(n, error) for n, error in enumerate(errors[:2])))
    assert [f"      {digest}" for digest in digests[:2]] == [line for line in few if "sha256:" in line]


def test_a_command_in_a_hint_names_the_configuration_and_is_not_split() -> None:
    hint = "the target's copy is damaged, and was not replaced: run `mirror sync --repair CONFIG`"
    lines = lines_of(failed(1, Refused("wrong bytes", hint=hint)))
    assert "      `mirror sync --repair /etc/mirror/prod.yaml`" == lines[-1]


def test_repositories_and_images_are_counted_separately() -> None:
    error = RemoteError("503 Service Unavailable", status=503, host=SOURCE)
    repository = FailedImage(f"{SOURCE}/a", f"{TARGET}/a", "failed", Failure.from_error(error), is_image=False)
    assert lines_of(failed(1, error), failed(2, error), repository)[0].startswith("failed: 2 images and 1 repository: ")
    conflict = failed(3, Refused("immutable", code="tag_immutable"), result="conflict")
    assert lines_of(conflict)[0].startswith("conflict: ")


def test_a_source_that_failed_for_several_targets_is_named_once() -> None:
    error = RemoteError("503 Service Unavailable", status=503, host=SOURCE)
    lines = lines_of(*(failed(n, error, repository=name) for n in (1, 2) for name in ("hub/app", "hub/copy")))
    assert "    library/app:v1 (2 targets), library/app:v2 and 1 more" == lines[1]


def test_many_causes_are_counted_and_use_little_memory() -> None:
    causes = Causes()
    for number in range(5000):
        causes.add(failed(number, RemoteError("500", status=500, host=f"host-{number}")))
    lines = cause_lines(causes, config=CONFIG, width=80)
    assert 201 >= len(causes)
    assert 5000 == sum(cause.count for cause in causes)
    assert lines[-1].startswith("and ")


def test_words_of_servers_cannot_control_the_terminal_or_break_the_grouping() -> None:
    hostile = FailedImage(f"{SOURCE}/app:\x1b[2J", "x\n: y/:", "failed", Failure("not_found", "", hint="", host="(*["))
    lines = lines_of(hostile, hostile)
    assert [] == [sign for line in lines for sign in line if not sign.isprintable()]


def test_the_host_of_an_error_is_the_one_that_its_text_mentions_first() -> None:
    hosts = ("localhost:5000", "localhost:50001", "quay.io")
    for text, host in [
        ("localhost:50001/app does not exist, unlike quay.io/app", "localhost:50001"),
        ("my.quay.io: gone", ""),
        ("quay.io:443 is down", ""),
        ("nothing", ""),
        ("cannot reach quay.io: refused", "quay.io"),
    ]:
        assert host == Failure.from_error(RemoteError(text), *hosts).host
    assert "cdn" == Failure.from_error(RemoteError("quay.io", host="cdn"), *hosts).host


def test_every_documented_error_code_has_a_remedy_whose_commands_exist() -> None:
    text = (ROOT / "docs" / "operations.md").read_text().partition("\n## Error codes\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(REMEDIES)
    for code in REMEDIES:
        lines = lines_of(failed(1, MirrorError("x", code=code)))
        assert any("hint: " in line for line in lines)
        assert not any("CONFIG" in line for line in lines)
        assert [] == [line for line in lines if len(line) > 80]


def test_urls_do_not_repeat_the_host() -> None:
    error = RemoteError(f"GET https://{TARGET}/v2/hub/app/manifests/v1: 500 Oops", status=500, host=TARGET)
    assert "    GET /v2/hub/app/manifests/v1: 500 Oops (bad_response, 500)" == lines_of(failed(1, error))[1]
    other = RemoteError(f"GET https://cdn.example.com/{TARGET}/blob: 500 Oops", host=TARGET)
    assert f"https://cdn.example.com/{TARGET}/blob:" in lines_of(failed(1, other))[1].split()

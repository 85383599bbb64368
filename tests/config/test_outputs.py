"""The keys `report`, `metrics` and `notify`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.config import Config, ConfigErrors, load
from tests.support.bad_configs import CANARY, HEAD, MIRROR

HOOK = f"https://hooks.example.com/services/{CANARY}"


def loaded(folder: Path, keys: str, *, secrets: bool = True) -> Config:
    path = folder / "mirror.yaml"
    path.write_text(f"{HEAD}{keys}\n{MIRROR}", encoding="utf-8")
    return load(path, secrets=secrets)


def test_the_keys_have_these_values_and_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_URL", HOOK)
    keys = "report: changes\nmetrics: {textfile: mirror.prom}\nnotify:\n- url: {env: HOOK_URL}\n"
    output = loaded(tmp_path, f"{keys}- {{url: '{HOOK}', on: [change], format: json}}").output
    assert (False, tmp_path / "mirror.prom") == (output.list_unchanged, output.textfile)
    first, second = output.webhooks
    assert ({"failure", "recovery"}, "json", HOOK) == (set(first.events), first.format, first.url.reveal())
    assert ({"change"}, HOOK) == (set(second.events), second.url.reveal())
    assert CANARY not in repr(output)
    nothing = loaded(tmp_path, "report: all").output
    assert (True, None, ()) == (nothing.list_unchanged, nothing.textfile, nothing.webhooks)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("report: some", "2:9: report: expected one of all, changes"),
        ("metrics: {textfile: mirror.txt}", "2:21: metrics.textfile: the textfile collector reads only files whose"),
        ("notify: []", "2:9: notify: expected a list with at least one entry"),
        ("notify: [{on: [failure]}]", '2:10: notify[0]: missing key "url"'),
        (f"notify: [{{url: '{HOOK}', on: [failed]}}]", "notify[0].on[0]: expected one of failure, change, recovery"),
        (f"notify: [{{url: '{HOOK}', format: teams}}]", "notify[0].format: expected one of json, slack"),
        ("notify: [{url: {env: NO_SUCH_HOOK}}]", "the environment variable NO_SUCH_HOOK is unset or empty; set it to"),
        ("notify: [{url: $HOOK_URL}]", "notify[0].url: variables are not expanded; write {env: NAME}"),
        (f"notify: [{{url: 'ftp://h.example.com/{CANARY}'}}]", "expected a URL like https://alerts.example.com/mirror"),
        (f"notify: [{{url: 'https://bob:{CANARY}@h.example.com/x'}}]", "but it contains a user name"),
        (f"notify: [{{url: ['{HOOK}']}}]", "notify[0].url: expected a URL like"),
    ],
)
def test_an_invalid_value_is_an_error_that_shows_no_part_of_a_url(keys: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loaded(tmp_path, keys)
    assert says in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("notify: [{url: {env: NO_SUCH_HOOK}}]", "NO_SUCH_HOOK is unset or empty; a run needs it"),
        (f"notify: [{{url: '{HOOK}', format: slack}}]", "the url is in plain text; use {env: NAME} or {file: PATH}"),
        ("notify: [{url: 'http://h.example.com/x'}]", "the messages are sent unencrypted; use https"),
    ],
)
def test_a_doubtful_value_is_a_warning(keys: str, says: str, tmp_path: Path) -> None:
    (warning,) = loaded(tmp_path, keys, secrets=False).warnings
    assert says in warning
    assert CANARY not in warning


def test_a_url_for_a_loopback_address_and_one_that_is_no_secret_cause_no_warning(tmp_path: Path) -> None:
    keys = "notify: [{url: 'http://127.0.0.1:9000/x'}, {url: 'https://alerts.example.com/mirror'}]"
    assert () == loaded(tmp_path, keys).warnings

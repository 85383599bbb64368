"""What a sync writes and sends after its report: metrics, notifications, the history, and a report of changes only."""

from __future__ import annotations

import json
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import loaded, pair
from tests.registries.faults import FOREVER
from tests.registries.process import eventually
from tests.registries.webhooks import WebhookServer
from tests.support.tool import MirrorTool

SECRET_PATH = "/services/T0123/B0456/jk3Lr9x0SecretOfTheWebhook"


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with WebhookServer() as server:
        yield server


def samples(path: Path) -> dict[str, float]:
    """Return the samples of a file in the text format of Prometheus, without the label of the configuration."""
    found = {}
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            head, _, labels = name.partition("{")
            kept = [one for one in labels.rstrip("}").split(",") if not one.startswith(("config=", 'shard=""'))]
            found[f"{head}{{{','.join(kept)}}}"] = float(number)
    return found


def test_metrics_contain_the_numbers_of_the_report_and_the_last_success(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    textfile = mirror_run.folder / "mirror.prom"
    pair(mirror_run, source, target, metrics={"textfile": str(textfile)})
    mirror_run.sync()
    first = samples(textfile)
    report = mirror_run.report()
    mirror = f'mirror="{source.host}/app"'
    assert 2 == first[f'mirror_last_run_images{{{mirror},result="copied"}}']
    assert report["totals"]["bytes"]["sent"] == first['mirror_last_run_bytes{direction="sent"}']
    asked = report["totals"]["requests"][source.host]["GET manifest"]
    assert asked == first[f'mirror_last_run_requests{{host="{source.host}",kind="manifest",method="GET"}}']
    answered = {name: number for name, number in first.items() if name.startswith("mirror_last_run_responses")}
    assert sum(sum(kinds.values()) for kinds in report["totals"]["requests"].values()) == sum(answered.values())
    assert first["mirror_last_run_timestamp_seconds{}"] == first["mirror_last_success_timestamp_seconds{}"]
    assert "mirror_oldest_failure_timestamp_seconds{}" not in first
    assert 0o644 == stat.S_IMODE(textfile.stat().st_mode)

    loaded(source, "v1", "v2", "v3", size=5000)
    target.fault("PUT manifest", reference="v3", status=400, times=FOREVER)
    mirror_run.sync(expect=1)
    since = samples(textfile)["mirror_oldest_failure_timestamp_seconds{}"]
    mirror_run.sync(expect=1)
    third = samples(textfile)
    assert since == third["mirror_oldest_failure_timestamp_seconds{}"] < third["mirror_last_run_timestamp_seconds{}"]
    assert first["mirror_last_success_timestamp_seconds{}"] == third["mirror_last_success_timestamp_seconds{}"]
    assert 1 == third["mirror_last_run_exit_code{}"]


def test_each_shard_has_its_own_file_of_metrics(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target, metrics={"textfile": "mirror.prom"})
    for shard in ("0/2", "1/2"):
        mirror_run.sync("--shard", shard)
    files = sorted(mirror_run.folder.glob("*.prom"))
    assert ["mirror-shard-0-of-2.prom", "mirror-shard-1-of-2.prom"] == [path.name for path in files]
    assert [True, True] == [f'shard="{path.stem.removeprefix("mirror-")}"' in path.read_text() for path in files]


def test_a_run_whose_metrics_cannot_be_written_fails_before_it_contacts_a_registry(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target, metrics={"textfile": "missing/mirror.prom"})
    ran = mirror_run.sync(expect=4)
    assert "cannot write the metrics to" in ran.err
    pair(mirror_run, source, target, metrics={"textfile": "mirror.prom"})
    (mirror_run.folder / "mirror-shard-0-of-2.prom").mkdir()
    ran = mirror_run.sync("--shard", "0/2", expect=4)
    assert "cannot write the metrics to" in ran.err
    assert [] == [*source.journal.requests(), *target.journal.requests()]


@pytest.mark.parametrize("options", [(), ("--json-events",)])
def test_if_the_metrics_cannot_be_written_at_the_end_every_output_has_the_exit_code_of_this_error(
    options: tuple[str, ...], scripted: ScriptedFactory, mirror_run: MirrorTool, hook: WebhookServer
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    folder, copy = mirror_run.folder / "metrics", mirror_run.folder / "copy.json"
    folder.mkdir()
    outputs = {"metrics": {"textfile": "metrics/mirror.prom"}, "notify": [{"url": f"{hook.url}/x"}]}
    pair(mirror_run, source, target, **outputs)
    stall = threading.Event()
    stalled = source.fault("GET tags", stall=stall)
    process = mirror_run.start("sync", mirror_run.config_file, "--report", copy, *options)
    assert stalled.fired.wait(60)
    folder.rmdir()
    stall.set()
    ran = mirror_run.finish(process)
    assert 4 == ran.code, ran
    assert 1 == ran.err.count(f"cannot write {folder}")
    report = mirror_run.report()
    assert (4, {f"{target.host}/app:v1": "copied"}) == (report["exit"], mirror_run.results())
    assert report == json.loads(copy.read_text())
    (ended,) = [record for record in mirror_run.log() if record["event"] == "run_ended"]
    (sent,) = hook.take()
    assert (4, "failure", 4) == (ended["exit"], sent.body["event"], sent.body["exit"])
    if options:
        assert 4 == json.loads(ran.out.splitlines()[-1])["exit"]
    folder.mkdir()
    mirror_run.sync()
    now = samples(folder / "mirror.prom")
    assert now["mirror_last_run_timestamp_seconds{}"] == now["mirror_last_success_timestamp_seconds{}"]
    assert [4, 0] == [run["exit"] for run in json.loads((mirror_run.state / "history").read_text())["runs"]]


def test_pauses_and_the_quota_of_a_host_are_in_the_report_and_in_the_metrics(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    quota = [("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")]
    source.fault("GET tags", status=429, headers=[("Retry-After", "1"), *quota])
    textfile = mirror_run.folder / "mirror.prom"
    pair(mirror_run, source, target, metrics={"textfile": str(textfile)})
    mirror_run.sync()
    use = mirror_run.report()["hosts"][source.host]
    assert [1.0] == [pause["seconds"] for pause in use["pauses"]]
    assert ({"remaining": 76, "limit": 100}, 1) == (use["quota"], use["statuses"]["429"])
    assert sum(mirror_run.report()["totals"]["requests"][source.host].values()) == sum(use["requests"])
    found = samples(textfile)
    assert 76 == found[f'mirror_quota_remaining_pulls{{host="{source.host}"}}']
    assert 1 == found[f'mirror_last_run_pause_seconds{{host="{source.host}"}}']


def test_a_failure_is_sent_once_and_its_recovery_once_and_changes_when_asked_for(
    scripted: ScriptedFactory, mirror_run: MirrorTool, hook: WebhookServer
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    notify = [
        {"url": f"{hook.url}/default"},
        {"url": f"{hook.url}/all", "on": ["failure", "change", "recovery"]},
        {"url": f"{hook.url}/changes", "on": ["change"], "format": "slack"},
    ]
    pair(mirror_run, source, target, notify=notify)

    def events() -> list[tuple[str, str]]:
        return sorted((one.path, one.body.get("event", "slack")) for one in hook.take())

    target.fault("PUT manifest", reference="v1", status=400, times=FOREVER)
    mirror_run.sync(expect=1)
    (first, second) = sorted(hook.received, key=lambda one: one.path, reverse=True)
    assert [("/all", "failure"), ("/default", "failure")] == events()
    assert first.body == second.body
    report = mirror_run.report()
    assert (report["run"], 1, report["totals"]["images"]) == tuple(first.body[key] for key in ("run", "exit", "images"))
    assert str(mirror_run.config_file) == first.body["config"]
    assert first.body["summary"][0].startswith("failed: ")
    mirror_run.sync(expect=1)
    assert [] == events(), "the same failure"

    target.faults.clear()
    mirror_run.sync()
    assert [("/all", "recovery"), ("/changes", "slack"), ("/default", "recovery")] == events()
    mirror_run.sync()
    assert [] == events(), "nothing happened"


def test_a_message_that_cannot_be_sent_changes_no_exit_code_and_is_sent_after_the_next_run(
    scripted: ScriptedFactory, mirror_run: MirrorTool, hook: WebhookServer
) -> None:
    """The path of the URL is a secret, which no output shows. Redirects are not followed."""
    source, target = scripted("source"), scripted("target")
    loaded(source)
    target.fault("PUT manifest", status=400, times=FOREVER)
    environment = {"SLACK_URL": f"{hook.url}{SECRET_PATH}"}
    pair(mirror_run, source, target, notify=[{"url": {"env": "SLACK_URL"}, "format": "slack"}])
    hook.status, hook.headers = 307, (("Location", f"{hook.url}/elsewhere"),)
    ran = mirror_run.sync("-vv", expect=1, environment=environment)
    assert f"the notification to {hook.url} was not sent: POST {hook.url}/***" in ran.err
    hook.status, hook.headers = 500, ()
    assert "has the status 500" in mirror_run.sync(expect=1, environment=environment).err
    hook.status = 200
    mirror_run.sync(expect=1, environment=environment)
    assert [SECRET_PATH] * 3 == [one.path for one in hook.take()]
    mirror_run.sync(expect=1, environment=environment)
    assert [] == hook.take()
    mirror_run.sweep(SECRET_PATH, "jk3Lr9x0SecretOfTheWebhook")


def test_a_message_contains_no_markup_of_the_names_of_images_and_no_credentials(
    scripted: ScriptedFactory, mirror_run: MirrorTool, hook: WebhookServer
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    body = json.dumps({"errors": [{"code": "DENIED", "message": "<!channel> ``` <https://evil.example|x>"}]}).encode()
    target.fault("PUT manifest", status=400, body=body, times=FOREVER)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}]
    login = {hook.host: {"username": "bob", "password": "hunter2-canary", "plain-http": True}}
    notify = [{"url": hook.url, "format": "slack"}]
    mirror_run.config(mirrors, source, target, notify=notify, registries=login)
    mirror_run.sync(expect=1)
    (received,) = hook.take()
    assert 2 == received.body["text"].count("```")
    assert "<" not in received.body["text"].replace("&lt;", "")
    assert "Authorization" not in received.headers


def test_a_signal_ends_the_wait_for_a_webhook_that_does_not_answer(
    scripted: ScriptedFactory, mirror_run: MirrorTool, hook: WebhookServer
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source)
    pair(mirror_run, source, target, notify=[{"url": hook.url, "on": ["change"]}])
    hook.hold.clear()
    process = mirror_run.start("sync", mirror_run.config_file)
    assert eventually(lambda: bool(hook.received), 30)
    process.send_signal(signal.SIGTERM)
    ran = mirror_run.finish(process, timeout=4)
    assert 0 == ran.code, "the run was over"
    assert "was not sent" in ran.err


def test_with_report_changes_only_images_that_were_not_up_to_date_are_listed(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    loaded(source, "v1", "v2")
    pair(mirror_run, source, target, report="changes")
    mirror_run.sync()
    loaded(source, "v3")
    mirror_run.sync()
    report: dict[str, Any] = mirror_run.report()
    listed = {image["source"].rpartition(":")[2]: image["result"] for image in report["images"]}
    counts = report["totals"]["images"]
    assert counts["up-to-date"] + len(listed) == sum(counts.values()) == 3
    assert (2, {"v3": "copied"}) == (counts["up-to-date"], listed)
    ran = mirror_run("inventory", mirror_run.state / "report.json")
    assert (2, True) == (ran.code, "does not list the images that were up to date" in ran.err)

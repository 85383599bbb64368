from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirror.limits import HostWait
from mirror.output.event_stream import EventStream
from mirror.output.line_writer import LineWriter
from mirror.output.progress import BlobSnapshot, Snapshot
from mirror.output.redaction import Redactor
from mirror.output.report import Failure, ImageEntry

MIB = 1024**2


class Events:
    """The events that an EventStream has written; they can be read after the `with` block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.redact = Redactor()

    @contextmanager
    def stream(self) -> Iterator[EventStream]:
        with (
            self._path.open("w") as out,
            LineWriter(out.fileno(), name="events", on_error=lambda error: None, describe_dropped=str) as lines,
        ):
            yield EventStream(lines, run="abc", redact=self.redact, now=lambda: 0.125)

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text().splitlines()]


def snapshot(seconds: float, *hosts: HostWait, moved: int = 0) -> Snapshot:
    return Snapshot("copying", 10, 4, 1, moved, moved, 100 * MIB, False, seconds, hosts=hosts)


def test_every_event_has_a_time_and_the_id_of_the_run(tmp_path: Path) -> None:
    events = Events(tmp_path / "events")
    with events.stream() as stream:
        stream.start_run("prod.yaml")
        stream.start_phase("planning")
    (started, phase) = events.read()
    assert ("1970-01-01T00:00:00.125Z", "run_started", "abc") == tuple(started[key] for key in ("ts", "event", "run"))
    assert {"ts": "1970-01-01T00:00:00.125Z", "event": "phase", "run": "abc", "phase": "planning"} == phase


def test_hosts_are_reported_when_they_begin_and_cease_to_wait_or_must_wait_longer(tmp_path: Path) -> None:
    events, hub, quay = Events(tmp_path / "events"), "docker.io", "quay.io"
    with events.stream() as stream:
        for seen in (
            snapshot(1.0, HostWait(hub, "rate limited", 42.0)),
            snapshot(1.25, HostWait(hub, "rate limited", 41.75), HostWait(quay, "down", 60)),
            snapshot(1.5, HostWait(hub, "rate limited", 60.0), HostWait(quay, "down", 59.75)),
            snapshot(1.75, HostWait(hub, "down", 59.75)),
            snapshot(2.0),
        ):
            stream.receive(seen, last=False)
    assert [
        ("host_waiting", hub, "rate limited", 42.0),
        ("host_waiting", quay, "down", 60.0),
        ("host_waiting", hub, "rate limited", 60.0),
        ("host_waiting", hub, "down", 59.8),
        ("host_resumed", quay, None, None),
        ("host_resumed", hub, None, None),
    ] == [
        (one["event"], one["host"], one.get("reason"), one.get("seconds"))
        for one in events.read()
        if one["event"] != "progress"
    ]


def test_the_progress_is_written_every_second_and_at_the_end(tmp_path: Path) -> None:
    events = Events(tmp_path / "events")
    with events.stream() as stream:
        for quarter in range(9):
            stream.receive(snapshot(quarter / 4, moved=quarter * 5 * MIB), last=False)
        stream.receive(snapshot(2.1, moved=42 * MIB), last=True)
    found = events.read()
    assert [0.0, 1.0, 2.0, 2.1] == [one["seconds"] for one in found]
    assert {"selected": 10, "done": 4, "failed": 1} == found[2]["images"]
    assert {"moved": 40 * MIB, "complete": 40 * MIB, "expected": 100 * MIB, "is_estimate": False} == found[2]["bytes"]
    assert (20 * MIB, 3.0) == (found[2]["bytes_per_second"], found[2]["seconds_left"])


def test_the_progress_lists_blobs(tmp_path: Path) -> None:
    events = Events(tmp_path / "events")
    blob = BlobSnapshot("registry.example.com/app", "sha256:abc", None, 7, "read")
    with events.stream() as stream:
        stream.receive(Snapshot("planning", 0, 0, 0, 0, 0, 0, False, 0, blobs=(blob,), more_blobs=3), last=False)
    (only,) = events.read()
    expected = {"action": "read", "repository": blob.place, "digest": "sha256:abc", "size": None, "position": 7}
    assert ([expected], 3, None) == (only["blobs"], only["more_blobs"], only["bytes"]["expected"])


def test_texts_are_redacted_and_control_characters_are_escaped(tmp_path: Path) -> None:
    events = Events(tmp_path / "events")
    events.redact.add("correct-horse")
    error = Failure("net_error", "GET https://user:pass@h/x?sig=abc failed \x1b[31m correct-horse", "look \u202e there")
    with events.stream() as stream:
        stream.add_image(ImageEntry("h/a:\x1b[0m", "t/a:1", "failed", error=error))
    raw = (tmp_path / "events").read_bytes()
    assert raw.isascii()
    assert not [secret for secret in (b"correct-horse", b"pass@", b"sig=abc") if secret in raw]
    assert (
        "GET https://***@h/x?sig=*** failed \\x1b[31m *** (look \\u202e there)" == events.read()[0]["error"]["message"]
    )

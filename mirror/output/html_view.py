"""Prepares the texts that the template of the HTML report shows: the run, its failures, changes and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from mirror.errors import FAILED, LOCAL, OK, REFUSED, SIGNALLED
from mirror.output.html_charts import format_time, repository_of
from mirror.output.report.causes import Cause, Causes
from mirror.output.report.changes import short_digest
from mirror.output.report.document import ReportDocument, ReportedImage
from mirror.output.report.records import FailedImage
from mirror.output.report.units import format_count, format_duration, format_size
from mirror.util.structs import Struct

MAX_IMAGES = 2500  # rows in the table of images
MAX_CAUSES = 50
MAX_CHANGES = 200  # repositories under "What changed"
MAX_CHANGED_IMAGES = 2000  # images under "What changed"
MAX_NAMES = 500  # repositories that the filter suggests
MAX_TABLE_ERROR = 240  # characters of an error in the table of images
_SHORTEST = 0.1  # seconds; shorter times are not shown

_STATES = {"copied": "good", "failed": "bad", "conflict": "bad", "skipped": "warn", "up-to-date": "plain"}
_STATES |= {"deleted": "good", "kept": "warn"}
_ORDER = {"failed": 0, "conflict": 1, "skipped": 2, "kept": 3, "copied": 4, "deleted": 5, "up-to-date": 6}
_MEANINGS = {
    OK: "nothing failed",
    FAILED: "some images failed",
    REFUSED: "something was refused for integrity or safety; check the cause",
    LOCAL: "a local error occurred",
}


class PageRun(Struct, frozen=True):
    """The values in the header of the HTML report. state: a CSS class."""

    id: str
    command: str
    started: str
    ended: str
    duration: str
    exit: int
    outcome: str
    meaning: str
    state: str


class PageTile(Struct, frozen=True):
    """A number in the summary of the HTML report, with its label. state: a CSS class."""

    number: str
    label: str
    state: str = ""


class PageExample(Struct, frozen=True):
    """A failed image that the HTML report shows as an example of a cause.

    text: the error; empty if the text of the cause contains it. since: since when the image has been failing, as text;
    empty if it has not failed before."""

    source: str
    target: str
    text: str = ""
    since: str = ""


class PageCause(Struct, frozen=True):
    """A cause of failures in the HTML report. title: the number of failures. more: the number of images not shown."""

    title: str
    text: str
    account: str
    hint: str
    examples: list[PageExample]
    more: int = 0


class PageTag(Struct, frozen=True):
    """A copied image in the HTML report. name: its tag or digest. change: how the target changed. title: a tooltip."""

    name: str
    change: str
    title: str


class PageChange(Struct, frozen=True):
    """The copied images of one source repository in the HTML report. more: the number of images not shown."""

    repository: str
    text: str
    images: list[PageTag]
    more: int = 0


class PageImage(Struct, frozen=True):
    """A row in the table of images in the HTML report."""

    result: str
    state: str
    source: str
    target: str
    digest: str
    short_digest: str
    sent: str
    seconds: str
    error: str


def run_view(report: ReportDocument) -> PageRun:
    """Return the values for the header of the HTML report."""
    counts = report.totals.images
    reached = report.deadline_reached and report.exit < SIGNALLED
    # The deadline alone causes the exit code 1.
    only_deadline = reached and report.exit == FAILED and not (counts.get("failed") or counts.get("conflict"))
    stopped = report.exit >= SIGNALLED or only_deadline
    outcome = "succeeded" if report.exit == OK else "stopped" if stopped else "failed"
    meaning = "stopped by a signal" if report.exit >= SIGNALLED else _MEANINGS.get(report.exit, "failed")
    if reached:
        meaning = "stopped by the deadline" if only_deadline else f"stopped by the deadline; {meaning}"
    state = "good" if report.exit == OK else "warn" if stopped else "bad"
    started, ended = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (report.started, report.ended))
    duration = format_duration(report.seconds)
    return PageRun(report.run, report.command, started, ended, duration, report.exit, outcome, meaning, state)


def tile_views(report: ReportDocument) -> list[PageTile]:
    """Return the numbers for the summary of the HTML report."""
    totals, copies = report.totals, report.command == "sync"
    always = ("copied", "up-to-date", "failed") if copies else ("up-to-date", "failed")
    labels = {"copied": "copied", "up-to-date": "up to date", "failed": "failed"}
    labels |= {"conflict": "in conflict", "skipped": "skipped", "deleted": "deleted", "kept": "kept"}
    tiles = [
        PageTile(str(totals.images.get(result, 0)), f"images {label}", _tile_state(result, totals.images))
        for result, label in labels.items()
        if totals.images.get(result) or result in always
    ]
    ways = {"read": "read", "sent": "sent", "mounted": "saved by mounts"}
    tiles += [PageTile(format_size(totals.bytes.get(way, 0)), label) for way, label in ways.items() if copies]
    requests = sum(sum(kinds.values()) for kinds in totals.requests.values())
    tiles.append(PageTile(str(requests), "requests"))
    if totals.retries:
        tiles.append(PageTile(str(totals.retries), "retries"))
    return tiles


def _tile_state(result: str, counts: dict[str, int]) -> str:
    """Return the CSS class of the tile that shows the number of images with `result`."""
    return _STATES[result] if counts.get(result) and result in ("failed", "conflict", "copied") else ""


def cause_views(report: ReportDocument, images: Sequence[ReportedImage]) -> tuple[list[PageCause], str]:
    """Return the causes of failures, and a text about the causes that are not shown."""
    causes = Causes()
    for image in images:
        if image.error is not None and image.result in ("failed", "conflict"):
            is_image = repository_of(image.source) != image.source
            for error in (image.error, *image.more_errors):
                failure = error.to_failure()
                causes.add(FailedImage(image.source, image.target, image.result, failure, is_image))
    since = {
        (image.source, image.target): f"failing since {format_time(image.failing_since)} UTC"
        for image in images
        if image.failing_since is not None and image.failing_since < report.started
    }
    views = [_cause_view(cause, since) for cause in islice(causes, MAX_CAUSES)]
    hidden = len(causes) - len(views)
    return views, f"and {format_count(hidden, 'other cause')}" if hidden else ""


def _cause_view(cause: Cause, since: Mapping[tuple[str, str], str]) -> PageCause:
    """Convert a cause for the HTML report. since: by source and target, texts such as `failing since TIME UTC`."""
    examples = [
        PageExample(
            one.source, one.target, "" if cause.text else one.failure.message, since.get((one.source, one.target), "")
        )
        for one in cause.examples
    ]
    counts = (format_count(cause.images, "image"), format_count(cause.others, "repository", "repositories"))
    counted = " and ".join(text for text, count in zip(counts, (cause.images, cause.others), strict=True) if count)
    codes = cause.code if cause.status is None else f"{cause.code}, {cause.status}"
    place = [cause.host] if cause.host and cause.host not in cause.text else []
    title = f"{counted} {'in conflict' if cause.result == 'conflict' else 'failed'}"
    text = ": ".join([*place, cause.text] if cause.text else place)
    more = cause.count - len(examples)
    return PageCause(title, f"{text} ({codes})".lstrip(), cause.account, cause.hint, examples, more)


def change_views(images: Sequence[ReportedImage]) -> tuple[list[PageChange], str]:
    """Return the copied images by source repository, and a text about the repositories that are not shown."""
    groups: dict[str, list[ReportedImage]] = {}
    for image in images:
        if image.result == "copied":
            groups.setdefault(repository_of(image.source), []).append(image)
    left, views = MAX_CHANGED_IMAGES, []
    for repository, group in islice(sorted(groups.items()), MAX_CHANGES):
        tags = [_tag_view(image, repository) for image in group[:left]]
        left -= len(tags)
        views.append(PageChange(repository, _change_text(group), tags, len(group) - len(tags)))
    hidden = len(groups) - len(views)
    return views, f"and {format_count(hidden, 'other repository', 'other repositories')}" if hidden else ""


def _tag_view(image: ReportedImage, repository: str) -> PageTag:
    """Return the entry for one copied image. repository: its source repository, which the entry does not repeat."""
    name = image.source.removeprefix(repository).lstrip(":")
    change: str = image.change or ""
    if image.change == "moved" and image.old_digest and image.digest:
        change = f"{short_digest(image.old_digest)} → {short_digest(image.digest)}"
    return PageTag(name, change, f"{image.target} {image.digest or ''}".rstrip())


def _change_text(group: Sequence[ReportedImage]) -> str:
    """Summarize the copied images of one repository: the numbers of images, blobs and bytes."""
    sent = sum(image.bytes.get("sent", 0) for image in group)
    copied, mounted = (sum(image.blobs.get(outcome, 0) for image in group) for outcome in ("copied", "mounted"))
    blobs = f"{format_count(copied, 'blob')} copied"
    blobs += f", {mounted} mounted" if mounted else ""
    return f"{format_count(len(group), 'image')} copied, {blobs}, {format_size(sent)} sent"


def image_views(report: ReportDocument, images: Sequence[ReportedImage]) -> tuple[list[PageImage], str]:
    """Return the rows of the table of images, failures first, and a text about the images that are not in the table."""
    ordered = sorted(images, key=lambda image: (_ORDER[image.result], image.source, image.target))
    shown = [_image_view(image) for image in ordered[:MAX_IMAGES]]
    texts = [] if shown else ["No image is listed."]
    if len(images) > len(shown):
        texts.append(f"The report lists {format_count(len(images) - len(shown), 'more image')}.")
    unlisted = sum(report.totals.images.values()) - len(images)
    if unlisted > 0:
        texts.append(f"Images that were up to date and are not listed in the report: {unlisted}.")
    return shown, " ".join(texts)


def _image_view(image: ReportedImage) -> PageImage:
    """Return the row for one image in the table of images."""
    error = image.error
    text = f"{error.code}: {error.message}" if error is not None else ""
    digest = image.digest or ""
    sent = image.bytes.get("sent", 0)
    return PageImage(
        image.result,
        _STATES[image.result],
        image.source,
        image.target,
        digest,
        digest[:19],
        format_size(sent) if sent else "",
        format_duration(image.seconds) if image.seconds >= _SHORTEST and image.result in ("copied", "failed") else "",
        text if len(text) <= MAX_TABLE_ERROR else text[: MAX_TABLE_ERROR - 1] + "…",
    )


def repository_names(images: Sequence[ReportedImage]) -> list[str]:
    """Return the names of source repositories that the filter of the HTML report suggests."""
    return sorted({repository_of(image.source) for image in images})[:MAX_NAMES]

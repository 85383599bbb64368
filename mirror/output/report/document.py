"""Parses the report.json of a run. docs/operations.md, "Report", describes its fields."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mirror.errors import ConfigError, printable
from mirror.output.report.records import Change, Failure, Result
from mirror.util.files import local_error
from mirror.util.host_use import HostUsage
from mirror.util.structs import AwareTime, Count, Raw, Seconds, Struct, check_years, decode_json, field

REPORT_NAME = "report.json"
MAX_BYTES = 1 << 30  # the maximum size of a report that is read


class ReportTotals(Struct, frozen=True):
    """The object `totals` of a report: numbers of images by result, blobs by outcome, bytes by kind, and requests.

    requests: by host and then by method and kind. mirrors: the number of images by mirror and result."""

    images: dict[str, Count]
    blobs: dict[str, Count]
    bytes: dict[str, Count]
    requests: dict[str, dict[str, Count]]
    retries: Count = 0
    waited_seconds: Seconds = 0.0
    mirrors: dict[str, dict[str, Count]] = field(default_factory=dict)


class ReportedError(Struct, frozen=True):
    """The object `error` of an image. message: includes the hint. hint, host, account: empty if they are not known."""

    code: str
    message: str
    status: Count | None = None
    retryable: bool = False
    hint: str = ""
    host: str = ""
    account: str = ""

    def to_failure(self) -> Failure:
        """Convert the error to a Failure, from which the cause is determined."""
        message = self.message.removesuffix(f" ({self.hint})") if self.hint else self.message
        return Failure(self.code, message, self.hint, self.status, self.retryable, self.host, self.account)


class ReportedImage(Struct, frozen=True):
    """An entry of the list `images` in report.json."""

    source: str
    target: str
    result: Result
    digest: str | None = None
    blobs: dict[str, Count] = field(default_factory=dict)
    bytes: dict[str, Count] = field(default_factory=dict)
    seconds: Seconds = 0.0
    error: ReportedError | None = None
    more_errors: list[ReportedError] = field(default_factory=list)
    failing_since: AwareTime | None = None
    change: Change | None = None
    old_digest: str | None = None

    def __post_init__(self) -> None:
        check_years(failing_since=self.failing_since)


class ReportDocument(Struct, frozen=True):
    """A parsed report.json. command: the command that wrote the report.

    deadline_reached: whether `--deadline` ended the run.

    The entries of `images` are kept as they were written; `read_images` parses them."""

    schema: Literal[1]
    run: str
    started: AwareTime
    ended: AwareTime
    exit: Count
    totals: ReportTotals
    hosts: Mapping[str, HostUsage] = field(default_factory=dict)
    retry_after: Seconds | None = None
    command: str = "sync"
    deadline_reached: bool = False
    images: list[Raw] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_years(started=self.started, ended=self.ended)

    @property
    def seconds(self) -> float:
        """The duration of the run in seconds."""
        return (self.ended - self.started).total_seconds()

    def read_images(self) -> list[ReportedImage]:
        """Parse the entries of `images`. Raises ValueError if one of them is not valid."""
        images = []
        for number, image in enumerate(self.images):
            try:
                images.append(decode_json(image, ReportedImage))
            except ValueError as error:
                raise ValueError(f"images[{number}]: {error}") from error
        return images


def read_report(path: Path) -> tuple[ReportDocument, list[ReportedImage]]:
    """Read the report at `path`, which may be a state directory, and its images.

    Raises ConfigError if there is no such file or it is not a report, LocalError if it cannot be read."""
    name = printable(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            path, name = path / REPORT_NAME, printable(path / REPORT_NAME)
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{name} is not a regular file", hint="specify the report.json of a run")
        if status.st_size > MAX_BYTES:
            raise ConfigError(f"{name} has {status.st_size} bytes; a report may have at most {MAX_BYTES} bytes")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        hint = "specify the report.json of a run, or the state directory, which is the key `state` of the configuration"
        raise ConfigError(f"{name} does not exist", hint=hint) from None
    except OSError as error:
        raise local_error("read", path, error) from error
    try:
        document = decode_json(data, ReportDocument)
        return document, document.read_images()
    except ValueError as error:
        hint = "specify the report.json of a run, or its state directory"
        raise ConfigError(f"{name} is not a report that mirror wrote: {printable(error, 200)}", hint=hint) from None

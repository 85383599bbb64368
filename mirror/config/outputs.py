"""Parses the keys `report`, `metrics` and `notify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from mirror.config import values
from mirror.config.secrets import build_secret
from mirror.config.section import Section
from mirror.errors import AuthError, ConfigError
from mirror.registry.http import url
from mirror.registry.http.host_settings import Secret
from mirror.util.structs import Struct

Event = Literal["failure", "change", "recovery"]
EVENTS: Mapping[str, Event] = {"failure": "failure", "change": "change", "recovery": "recovery"}
_DEFAULT_EVENTS = ("failure", "recovery")
_EXPECTED_URL = "expected a URL like https://alerts.example.com/mirror"


class Webhook(Struct, frozen=True):
    """An item of the key `notify`: a webhook that receives messages about runs.

    url: may contain a secret. events: the events that cause a message."""

    url: Secret
    events: frozenset[Event]
    format: Literal["json", "slack"] = "json"


class OutputConfig(Struct, frozen=True):
    """The settings for the outputs of a run: its report, its metrics and its notifications.

    list_unchanged: whether the report lists images that were up to date. textfile: the file for metrics."""

    list_unchanged: bool = True
    textfile: Path | None = None
    webhooks: tuple[Webhook, ...] = ()

    def textfile_of(self, shard: str) -> Path | None:
        """Return the file for the metrics of a shard, such as `mirror-shard-0-of-4.prom` for `mirror.prom`.

        shard: the name of the shard, or an empty string. Returns None if no file is configured."""
        path = self.textfile
        return path.with_name(f"{path.stem}-{shard}{path.suffix}") if path is not None and shard else path


def build(top: Section, *, secrets: bool) -> OutputConfig:
    """Build the settings for outputs from the top level of the configuration. Add problems to the document.

    secrets: whether a missing environment variable or file is a problem; otherwise, it is a warning."""
    metrics = top.section("metrics")
    textfile = metrics.file("textfile")
    if textfile is not None and textfile.suffix != ".prom":
        metrics.add_problem("the textfile collector reads only files whose names end in .prom", below="textfile")
    webhooks = (_webhook(section, secrets=secrets) for section in top.sections("notify"))
    return OutputConfig(top.text("report") != "changes", textfile, tuple(one for one in webhooks if one is not None))


def _webhook(section: Section, *, secrets: bool) -> Webhook | None:
    """Build the webhook for an item of `notify`, or return None if its URL is missing or invalid."""
    secret = build_secret(section, "url", warn_if_plain=section.text("format") == "slack")
    events = [event for _, event in section.parse_list("on", lambda text: EVENTS[text])] or _DEFAULT_EVENTS
    if secret is None:
        return None
    missing = secret.problem()
    if missing and secrets:
        section.add_problem(f"{missing}; set it to the URL", below="url")
    elif missing:
        section.add_warning(f"{missing}; a run needs it", below="url")
    else:
        _check_url(section, secret)
    kind = cast(Literal["json", "slack"], section.text("format") or "json")
    return Webhook(secret, frozenset(cast("list[Event]", events)), kind)


def _check_url(section: Section, secret: Secret) -> None:
    """Report an invalid URL of a webhook, and warn about http. The messages do not show the URL."""
    try:
        origin = parse_webhook_url(secret.reveal())[0]
    except (AuthError, ConfigError) as error:
        section.add_problem(str(error), below="url")
        return
    if origin.scheme == "http" and not values.is_loopback(origin.netloc):
        section.add_warning("the messages are sent unencrypted; use https", below="url")


def parse_webhook_url(text: str) -> tuple[url.Origin, str]:
    """Split the URL of a webhook into its origin, and its path with the query.

    Raises ConfigError. The message contains no part of the URL."""
    try:
        return url.split(text)
    except url.BadUrl as error:
        raise ConfigError(f"{_EXPECTED_URL}, but {error}") from None

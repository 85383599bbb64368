"""Parses the keys `create` and `login` of a registry."""

from __future__ import annotations

import re
from importlib.util import find_spec
from urllib.parse import urlsplit

from mirror.config import values
from mirror.config.section import Section
from mirror.errors import ConfigError
from mirror.registry.ecr_hosts import parse_ecr_host
from mirror.registry.http.host_settings import EcrRepositorySettings, HarborProjectSettings

_OF_TYPE = {
    "ecr": ("immutable-tags", "scan-on-push", "kms-key", "tags", "endpoint"),
    "harbor": ("public", "scan-on-push", "storage-limit"),
}
_NOT_PUBLIC = ("immutable-tags", "scan-on-push", "kms-key")  # keys that have no effect on ECR Public
_URL_TEXT = re.compile(r"[!#-;=?-\[\]_a-z~]+")  # printable ASCII without quotes, spaces and backslashes
_MAX_TAG_NAME = 128  # characters; a limit of AWS


def build(section: Section, host: str) -> EcrRepositorySettings | HarborProjectSettings | None:
    """Parse the key `create`: how to create missing repositories on a host; None if they are not created.

    Adds problems for invalid settings."""
    below = section.section("create")
    kind = section.text("create") or below.text("type")
    if kind is None:
        return None
    ecr_host = parse_ecr_host(host)
    for key in below.keys():  # noqa: SIM118 (a Section is not a dict)
        other = next((one for one, keys in _OF_TYPE.items() if key in keys), None)
        if other is not None and key not in _OF_TYPE[kind]:
            below.add_problem(f"has no effect with type {kind}, only with {other}; remove it", below=key)
        elif ecr_host is not None and ecr_host.public and key in _NOT_PUBLIC:
            below.add_problem("ECR Public has no such setting; remove it", below=key)
    if kind == "harbor":
        if ecr_host is not None:
            section.add_problem(f"{host} is an Amazon ECR registry, so the type must be `ecr`", below="create")
        return HarborProjectSettings(
            public=below.flag("public", False),
            scan_on_push=_flag_or_none(below, "scan-on-push"),
            storage_limit=below.parse("storage-limit", values.size),
        )
    _check_extra(section, "create")
    return EcrRepositorySettings(
        immutable_tags=_flag_or_none(below, "immutable-tags"),
        scan_on_push=_flag_or_none(below, "scan-on-push"),
        kms_key=below.text("kms-key") or "",
        tags=_tags(below.section("tags")),
        endpoint=_endpoint(below),
    )


def build_login(section: Section, host: str) -> str:
    """Parse the key `login`: the service that issues passwords for a host, or an empty string.

    Adds problems for invalid settings."""
    service = section.text("login")
    if service is None:
        return ""
    if any(section.has_key(key) for key in ("username", "password", "paths")):
        what = f"`login` provides the user name and password of {host}; remove `username`, `password` and `paths`"
        section.add_problem(what, below="login")
    _check_extra(section, "login")
    return service


def _check_extra(section: Section, key: str) -> None:
    """Add a problem if boto3, which the value `ecr` needs, is not installed."""
    if find_spec("boto3") is None:
        section.add_problem("ecr needs the extra `aws`: pip install 'mirror[aws]'", below=key)


def _flag_or_none(section: Section, key: str) -> bool | None:
    """Return the boolean under `key`, or None if it is missing."""
    return section.flag(key, False) if section.has_key(key) else None


def _tags(section: Section) -> dict[str, str]:
    """Return the AWS tags of new repositories on ECR. Add problems for invalid names."""
    found: dict[str, str] = {}
    for name in section.keys():  # noqa: SIM118 (a Section is not a dict)
        value = section.text(name)
        if not 0 < len(name) <= _MAX_TAG_NAME:
            section.add_problem(f"AWS requires 1 to {_MAX_TAG_NAME} characters; shorten it", key=name)
        elif name.lower().startswith("aws:"):
            section.add_problem("AWS reserves names that begin with aws:; choose another name", key=name)
        elif value is not None:
            found[name] = value
    return found


def _endpoint(section: Section) -> str:
    """Return the URL of the ECR API endpoint, or an empty string. Add a problem if it is invalid.

    Also adds a warning if the URL does not use TLS."""
    url = section.parse("endpoint", _parse_endpoint) or ""
    if url.startswith("http:") and not values.is_loopback(urlsplit(url).netloc):
        section.add_warning("passwords from AWS are sent unencrypted; use https", below="endpoint")
    return url


def _parse_endpoint(text: str) -> str:
    """Return the URL of an API endpoint unchanged. Raises ConfigError if it is invalid."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.username or parts.query or parts.fragment or not _URL_TEXT.fullmatch(text):
        raise ConfigError("not the URL of an endpoint; expected a URL like https://api.ecr.eu-west-1.amazonaws.com")
    return text

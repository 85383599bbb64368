"""Requests and replies as values, for the hooks of scripted registries, token services and proxies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from tests.registries.access import OWN_AGENT

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """A received request. target: with its query. body: empty if it was not read (proxies stream it)."""

    method: str
    target: str
    headers: Headers
    body: bytes = b""
    kind: str = ""
    repository: str = ""
    reference: str = ""
    connection: int = 0

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    @property
    def ours(self) -> bool:
        """Whether the request is from the tests' own client."""
        return (self.header("User-Agent") or "").startswith(OWN_AGENT)

    def header(self, name: str) -> str | None:
        """Return the first header of that name, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that hooks may change. Content-Length is added if it is missing and `length` is true."""

    status: int = 200
    headers: Headers = ()
    body: bytes = b""
    length: bool = True
    reason: str = field(default="")


Hook = Callable[[Request], "Reply | None"]


def json_reply(status: int, document: Any, *headers: tuple[str, str]) -> Reply:
    body = json.dumps(document).encode()
    return Reply(status, (("Content-Type", "application/json; charset=utf-8"), *headers), body)


def error_reply(status: int, code: str, message: str = "", *headers: tuple[str, str]) -> Reply:
    """Return an error document of the distribution-spec."""
    return json_reply(
        status, {"errors": [{"code": code, "message": message or code.lower(), "detail": None}]}, *headers
    )

"""Sends a message to a webhook: one POST request, with the library `requests`.

Importing `requests` takes 0.1 s, so this module is imported only when it is needed.
"""

from __future__ import annotations

from mirror import __version__
from mirror.errors import RemoteError
from mirror.limits import Limits
from mirror.registry.http.client import HttpClient
from mirror.registry.http.connector import Connector
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.one_off import OneOffClient
from mirror.registry.http.request import Request
from mirror.registry.http.url_policy import Destination, Origin, UrlPolicy
from mirror.util.cancellation import Work
from mirror.util.structs import replace

CONNECT_TIMEOUT = 5.0  # seconds to open a connection
EXCHANGE_TIMEOUT = 5.0  # seconds to send the request and to read the response


def post_json(settings: HostSettings, origin: Origin, target: str, body: bytes, work: Work) -> None:
    """Send a JSON document to a URL once. Raises MirrorError unless the response has a status from 200 to 299.

    settings: the settings for the host of the URL; its TLS and proxy settings are used, but no credentials. origin,
    target: the two parts of the URL; errors do not contain the target, which may be a secret."""
    settings = replace(
        settings, plain_http=origin.scheme == "http", connect_timeout=CONNECT_TIMEOUT, idle_timeout=EXCHANGE_TIMEOUT
    )
    policy = UrlPolicy(settings)
    connector = Connector(settings, policy)
    agent = f"mirror/{__version__}"
    client = HttpClient(settings, policy, Limits(), connector, user_agent=agent, deadline=EXCHANGE_TIMEOUT)
    sender = OneOffClient(client, connector, policy, user_agent=agent, idle=EXCHANGE_TIMEOUT, deadline=EXCHANGE_TIMEOUT)
    request = Request(
        "POST",
        "message",
        Destination(origin, target, hide_path=True),
        headers=(("Content-Type", "application/json"),),
        body=body,
    )
    try:
        _, response = sender.send(request, work)
    finally:
        sender.close()
        client.close()
    if not 200 <= response.status <= 299:
        raise RemoteError(f"{request}: the response has the status {response.status}", status=response.status)

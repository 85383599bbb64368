"""Deletes upload sessions that are not committed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mirror.errors import MirrorError
from mirror.registry.auth.authorizer import Scope
from mirror.registry.http.url_policy import Destination
from mirror.registry.session import Session
from mirror.util.cancellation import Stop, Work

DELETE_TIMEOUT = 2.0  # seconds; the time limit for deleting an uncommitted session
_DELETED = frozenset({200, 202, 204, 404})

_log = logging.getLogger("mirror.upload")


def delete_upload(session: Session, repository: str, location: Destination, what: str) -> None:
    """Delete an upload session. Takes at most DELETE_TIMEOUT, even after a stop request. Errors are only logged.

    what: the name of the blob, for the log."""
    with _limited_work(DELETE_TIMEOUT) as work:
        try:
            # Some registries require the action `delete`. It is a separate set of scopes, so that a refusal does not
            # affect pushes.
            scopes = (Scope(repository, ("pull", "push", "delete")),)
            session.call("DELETE", location, work, kind="upload", scopes=scopes, expect=_DELETED)
        except MirrorError as failure:
            # This is not an error, because registries remove unused sessions themselves.
            _log.debug("%s: upload session not deleted: %s", what, failure)


@contextmanager
def _limited_work(seconds: float) -> Iterator[Work]:
    """Provide a Work in a `with` block. The Work is stopped after `seconds`, but not when the run is stopped."""
    stop = Stop()
    timer = threading.Timer(seconds, stop.request, args=("time limit",))
    timer.start()
    try:
        yield Work(stop, retries=False, urgent=True)
    finally:
        timer.cancel()
        timer.join()

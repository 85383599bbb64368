"""Single calls to other services, token services first: forms and parameters by requests, the wire by ours.

requests is imported when first needed: it costs a third of a second, and many runs have no use for it.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from mirror.errors import Refused, RemoteError
from mirror.registry.http.client import Answer, Request
from mirror.registry.http.status_errors import REDIRECTS
from mirror.registry.http.url_policy import Destination, Trust
from mirror.util.structs import replace

if TYPE_CHECKING:
    import requests

Carry: TypeAlias = Callable[[Request], Answer]
"""Sends a request by the strict pool and reads all of its answer."""

_MOST_HOPS = 5


def perform(
    carry: Carry,
    trust: Trust,
    request: Request,
    *,
    params: Sequence[tuple[str, str]],
    form: Mapping[str, str] | None,
    basic: tuple[str, str] | None,
) -> Answer:
    """`request` with `params` added to its query, `form` as its body, and a login; a GET is redirected within
    its origin. Raises what `carry` raises, RemoteError (bad_response), Refused (unsafe_realm)."""
    if (basic or form) and not request.destination.credentials:
        raise Refused(f"{request}: credentials do not go there", code="unsafe_realm")
    with _requests().Session() as session:
        session.trust_env = False  # no netrc, no proxies of the environment
        session.headers.clear()
        for _ in range(_MOST_HOPS + 1):
            answer = _send(session, carry, request, _parts(params, form, basic))
            if answer.status not in REDIRECTS:
                return answer
            location = answer.headers.one("location")
            if request.method != "GET" or not location:
                raise RemoteError(f"{request}: {answer.status}: redirect not usable", status=answer.status)
            request, params = request.to(trust.token_redirect(location, answer.destination)), ()
    raise Refused(f"{request}: more than {_MOST_HOPS} redirects", code="unsafe_realm")


def _send(session: requests.Session, carry: Carry, request: Request, parts: dict[str, Any]) -> Answer:
    carrier = _adapter_type()(carry, request)
    session.mount(f"{request.destination.origin}/", carrier)
    url = f"{request.destination.origin}{request.destination.target}"
    prepared = session.prepare_request(_requests().Request(request.method, url, headers=dict(request.headers), **parts))
    session.send(prepared, allow_redirects=False)
    answer: Answer = carrier.answer
    return answer


def _parts(
    params: Sequence[tuple[str, str]], form: Mapping[str, str] | None, basic: tuple[str, str] | None
) -> dict[str, Any]:
    """Query, form and login as requests wants them; a login in UTF-8, which it would send in Latin-1."""
    login = None if basic is None else tuple(part.encode("utf-8") for part in basic)
    return {"params": list(params), "data": None if form is None else dict(form), "auth": login}


def _requests() -> Any:
    import requests  # noqa: PLC0415 - see above

    return requests


@functools.cache
def _adapter_type() -> Any:
    library = _requests()

    class StrictAdapter(library.adapters.BaseAdapter):  # type: ignore[misc, name-defined]
        """Carries a prepared request over the strict pool, to the destination that was agreed on and nowhere else."""

        def __init__(self, carry: Carry, request: Request) -> None:
            super().__init__()
            self._carry = carry
            self._request = request
            self.answer: Answer | None = None

        def send(self, prepared: Any, **_: Any) -> Any:
            answer = self.answer = self._carry(_as_ours(self._request, prepared))
            response = library.Response()
            response.status_code = answer.status
            response.headers.update(answer.headers)
            response.raw = io.BytesIO(answer.body)
            response.url = str(answer.destination)
            response.request = prepared
            return response

        def close(self) -> None:
            """The pool outlives it."""

    return StrictAdapter


def _as_ours(request: Request, prepared: Any) -> Request:
    """Headers, query and body as requests made them; the origin and path stay ours."""
    query = urlsplit(prepared.url).query
    destination: Destination = replace(
        request.destination, target=request.destination.path + (f"?{query}" if query else "")
    )
    body = prepared.body or b""
    return replace(
        request,
        destination=destination,
        headers=tuple((name, value) for name, value in prepared.headers.items() if name != "Content-Length"),
        body=body.encode("utf-8") if isinstance(body, str) else body,
    )

"""What a registry client sends its requests through: authorisation, redirects, retries, limits, exact statuses.

One session for one registry, for any thread. Each method blocks until done, ends with Cancelled when the work is
stopped, and raises only MirrorErrors. Success is a status that was expected; all else is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mirror import __version__
from mirror.errors import AuthError, MirrorError, Refused, RemoteError
from mirror.limits import HostLimits, Limits
from mirror.registry.auth.authorizer import Anonymous, Authorizer, Scope
from mirror.registry.http import status_errors
from mirror.registry.http.client import Answer, Exchange, Request, Stream, Upload
from mirror.registry.http.connector import Connector
from mirror.registry.http.framing import TooBig
from mirror.registry.http.headers import Headers
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.http.lookups import Resolve, system_resolve
from mirror.registry.http.url_policy import Destination, Trust
from mirror.registry.retries import Retries
from mirror.util.cancellation import Work
from mirror.util.retry_policy import Policy

if TYPE_CHECKING:
    from mirror.registry.http.cookies import Cookies
    from mirror.registry.http.one_off import OneOffs

__all__ = ["Anonymous", "Answer", "Authorizer", "Headers", "Scope", "Session", "Stream", "TooBig"]

MOST_HOPS = 5
_SMALL = 64 << 10  # bytes
_REDIRECTED = frozenset({"GET", "HEAD"})


class Session:
    """Requests to one registry, and to the hosts that it leads to. Close it: `with`."""

    def __init__(
        self,
        settings: HostSettings,
        limits: Limits,
        *,
        authorizer: Authorizer | None = None,
        policy: Policy | None = None,
        user_agent: str = f"mirror/{__version__}",
        deadline: float = 120.0,
        resolve: Resolve = system_resolve,
        cookies: Cookies | None = None,
    ) -> None:
        """deadline: seconds for the whole of a small request, its answer included. cookies: None: they are ignored."""
        self.settings = settings
        self.trust = Trust(settings)
        self.host: HostLimits = limits.host(settings.host)
        self.authorizer: Authorizer = authorizer or Anonymous()
        self.speaks_v2 = False  # an answer of the registry named the version of its API
        self._cookies = cookies
        self._policy = policy or Policy()
        self._connector = Connector(settings, self.trust, resolve=resolve)
        self._user_agent, self._deadline = user_agent, deadline
        self._exchange = Exchange(
            settings, self.trust, limits, self._connector, user_agent=user_agent, deadline=deadline
        )
        self._lock = threading.Lock()
        self._other: OneOffs | None = None
        self._retries = Retries(limits, self._policy, settings.host)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections; one in use is closed by its user."""
        self._exchange.close()
        with self._lock:
            other, self._other = self._other, None
        if other is not None:
            other.close()

    def call(
        self,
        method: str,
        where: str | Destination,
        work: Work,
        *,
        kind: str,
        scopes: tuple[Scope, ...] = (),
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        expect: Collection[int],
        limit: int = _SMALL,
    ) -> Answer:
        """A small request and its whole answer, of at most `limit` bytes; tried again if `work` says so.

        where: a path of the registry, or a place that `trust` agreed to. kind: the noun it is counted under.
        GET and HEAD are redirected, and `expect` may hold 403 to learn where to. Raises TooBig."""
        request = Request(method, kind, self._at(where), tuple(headers), body)

        def once() -> Answer:
            return self._followed(request, scopes, work, expect, streamed=False).read(limit)

        return self._retries.run(once, request, work)

    def stream(
        self,
        where: str | Destination,
        work: Work,
        *,
        kind: str,
        scopes: tuple[Scope, ...] = (),
        headers: Sequence[tuple[str, str]] = (),
        expect: Collection[int] = (200, 206),
    ) -> Stream:
        """GET something big; use with `with`. Not tried again here: the transfer that needs it is."""
        request = Request("GET", kind, self._at(where), tuple(headers))
        stream = self._followed(request, scopes, work, expect, streamed=True)
        coding = stream.headers.listed("content-encoding")
        if coding and coding != ["identity"]:
            stream.close()
            raise RemoteError(f"{request}: its bytes are sent encoded ({', '.join(coding)})", status=stream.status)
        return stream

    def upload(
        self,
        method: str,
        destination: Destination,
        work: Work,
        *,
        kind: str,
        scopes: tuple[Scope, ...] = (),
        headers: Sequence[tuple[str, str]] = (),
        length: int | None,
        body: Iterable[bytes | memoryview],
        expect: Collection[int],
        limit: int = _SMALL,
    ) -> Answer:
        """Send `body`, `length` bytes of it, or in chunks if that is None; never tried again here.

        What the body raises goes through, and the connection is cut: the registry must not see a body that looks whole.
        An answer that comes early ends the sending. Raises AuthError, retryable, after a 401 that a new token cures."""
        request = Request(method, kind, destination, tuple(headers), Upload(body, length))
        if not self._is_ours(destination):
            stream = self._exchange.send(request, work)
        else:
            stream, sent = self._introduced(request, scopes, work)
            if stream.status == 401:
                error = self._renewed(stream, scopes, sent, work)
                error.retryable = True
                raise error
            self._answered(stream.status, scopes)
        if stream.status not in expect:
            raise self._failed(stream)
        return stream.read(limit)

    def one_off(
        self,
        method: str,
        destination: Destination,
        *,
        params: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
        work: Work,
        kind: str = "token",
    ) -> Answer:
        """Ask a service that `trust.realm` agreed to. -> its answer, whatever its status, but for those that a
        retry may cure (408, 425, 429, 5xx): they are tried again as in `call`, then raised."""
        request = Request(method, kind, destination, (("Accept", "application/json"),))

        def once() -> Answer:
            sent, answer = self._one_offs().perform(request, work, params=params, form=form, basic=basic)
            if answer.status in (408, 425, 429) or answer.status >= 500:
                error = self._judged(sent, answer.status, answer.headers, answer.body)
                self._retries.heed(error, sent, self._exchange.host(sent.destination).name)
                raise error
            return answer

        return self._retries.run(once, request, work)

    def _one_offs(self) -> OneOffs:
        from mirror.registry.http.one_off import OneOffs  # noqa: PLC0415 (requests takes 0.1 s)

        with self._lock:
            if self._other is None:
                self._other = OneOffs(
                    self._exchange,
                    self._connector,
                    self.trust,
                    user_agent=self._user_agent,
                    idle=self.settings.idle_timeout,
                    deadline=self._deadline,
                )
            return self._other

    def failure(self, answer: Answer, method: str, kind: str) -> MirrorError:
        """The error that an answer amounts to, where `expect` let a status through that is none after all."""
        request = Request(method, kind, answer.destination)
        return self._judged(request, answer.status, answer.headers, answer.body)

    def gave_up(self, error: MirrorError) -> None:
        """`error` outlived all retries of a transfer, which are not made here."""
        self._retries.gave_up(error)

    def _at(self, where: str | Destination) -> Destination:
        return where if isinstance(where, Destination) else self.trust.own(where)

    def _followed(
        self, request: Request, scopes: tuple[Scope, ...], work: Work, expect: Collection[int], *, streamed: bool
    ) -> Stream:
        """The first answer with an expected status, after redirects. Each place is checked before it is asked."""
        for _ in range(MOST_HOPS + 1):
            stream = self._asked(request, scopes, work, streamed)
            if stream.status in expect:
                return stream
            if stream.status not in status_errors.REDIRECTS or request.method not in _REDIRECTED:
                raise self._failed(stream)
            with stream:
                stream.beginning()
                location = stream.headers.one("location")
                if not location:
                    raise RemoteError(f"{stream.request}: a redirect to nowhere", status=stream.status)
                request = request.to(self.trust.redirect(location, request.destination))
        raise Refused(f"{request}: more than {MOST_HOPS} redirects", code="unsafe_redirect")

    def _asked(self, request: Request, scopes: tuple[Scope, ...], work: Work, streamed: bool) -> Stream:
        """An answer that is not about who we are: one renewal is allowed, a second 401 is final."""
        if not self._is_ours(request.destination):
            return self._exchange.send(request, work, streamed=streamed)
        for again in (True, False):
            stream, sent = self._introduced(request, scopes, work, streamed)
            if stream.status != 401 and not (again and self._says_expired(stream, scopes)):
                break
            error = self._renewed(stream, scopes, sent, work)
            if not again:
                raise error
        self._answered(stream.status, scopes)
        return stream

    def _introduced(
        self, request: Request, scopes: tuple[Scope, ...], work: Work, streamed: bool = False
    ) -> tuple[Stream, str | None]:
        """An answer to the request with who we are, and what we said of that."""
        with _spent():
            sent = self.authorizer.header(scopes, work)
        try:
            told = _with(request, "Authorization", sent)
            if self._cookies is not None:
                told = _with(told, "Cookie", self._cookies.header(request.destination.origin))
            stream = self._exchange.send(told, work, streamed=streamed)
        except BaseException:
            self.authorizer.abandoned(scopes)
            raise
        if not self.speaks_v2:
            self.speaks_v2 = status_errors.says_v2(stream.headers.all("docker-distribution-api-version"))
        if self._cookies is not None:
            self._cookies.note(request.destination.origin, stream.headers.all("set-cookie"))
        return stream, sent

    def _renewed(self, stream: Stream, scopes: tuple[Scope, ...], sent: str | None, work: Work) -> MirrorError:
        """Let the authorizer see to a refusal. -> the error that it is if nothing can be done. Raises AuthError."""
        try:
            error = self._failed(stream)
        except BaseException:
            self.authorizer.abandoned(scopes)
            raise
        with _spent():
            self.authorizer.challenged(scopes, stream.headers.all("www-authenticate"), sent, work)
        return error

    def _says_expired(self, stream: Stream, scopes: tuple[Scope, ...]) -> bool:
        try:
            return stream.status == 403 and status_errors.says_expired(403, stream.beginning())
        except BaseException:
            stream.close()
            self.authorizer.abandoned(scopes)
            raise

    def _answered(self, code: int, scopes: tuple[Scope, ...]) -> None:
        """Tell the authorizer of an answer. A gateway in front of a registry does not ask who we are."""
        if code == 429 or code >= 500:
            self.authorizer.abandoned(scopes)
        elif code != 401:
            self.authorizer.accepted(scopes)

    def _is_ours(self, destination: Destination) -> bool:
        origin = destination.origin
        return destination.credentials and (origin == self.trust.api or origin in self.trust.endpoints)

    def _failed(self, stream: Stream) -> MirrorError:
        """Read what an unwanted answer says, let go of it, and act on what it asks of everybody."""
        with stream:
            error = self._judged(stream.request, stream.status, stream.headers, stream.beginning())
        self._retries.heed(error, stream.request, self._exchange.host(stream.destination).name)
        return error

    def _judged(self, request: Request, code: int, headers: Headers, body: bytes) -> MirrorError:
        error = status_errors.failure(
            str(request),
            code,
            headers,
            status_errors.unechoed(body, request.headers, request.destination.target),
            host=self._exchange.host(request.destination).name,
            longest_wait=self._policy.longest_asked,
            writes=request.method not in _REDIRECTED and request.kind != "token",
        )
        if request.destination.server_named and isinstance(error, AuthError):
            # Not about us: we showed nothing. A signed URL that ran out is replaced by asking the registry again.
            error.code, error.retryable = "auth_denied", code == 403
        return error


@contextmanager
def _spent() -> Iterator[None]:
    """A token service was asked again and again already, and by one for all who waited."""
    try:
        yield
    except MirrorError as error:
        error.spent = True
        raise


def _with(request: Request, name: str, value: str | None) -> Request:
    """The same with one header more, first; None: none."""
    if value is None:
        return request
    headers = ((name, value), *request.headers)
    return Request(request.method, request.kind, request.destination, headers, request.body)

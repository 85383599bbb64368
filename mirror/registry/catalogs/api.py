"""A client for the REST API of a registry product: authorization, JSON, and paginated lists.

Requests use the settings of the registry (TLS, proxy, timeouts). Only the API receives credentials, not the hosts that
its responses name (docs/trust.md, "Catalogs").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from urllib.parse import urlencode

from mirror.errors import AuthError, NotFound, Refused, RemoteError
from mirror.oci import strictjson
from mirror.oci.strictjson import Object, Value
from mirror.registry.auth.credentials import Credential, CredentialSource
from mirror.registry.http.headers import Headers, basic_authorization
from mirror.registry.http.url_policy import Destination
from mirror.registry.listings import MAX_EMPTY_PAGES, MAX_NAMES, MAX_PAGE_BYTES, MAX_PAGES, next_link
from mirror.registry.session import Anonymous, Session, TooBig
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

PAGE_SIZE = "100"  # the largest page of Docker Hub, GitHub, GitLab and Harbor
ONE_BY_ONE = "add one mirror for each repository, without `*`"
_JSON = ("Accept", "application/json")


class RegistryAccess(Struct, frozen=True):
    """Access to the registry whose product API is called: a session and a source of credentials.

    session: the session with the registry. credentials: looks up the credentials for the registry."""

    session: Session
    credentials: CredentialSource

    @property
    def host(self) -> str:
        """The name of the registry, as in references."""
        return self.session.settings.host

    def find_credential(self, prefix: str, work: Work) -> Credential | None:
        """Return the credential for the repositories that begin with `prefix`, or None if there is none.

        Raises AuthError if a secret cannot be read."""
        return self.credentials.find(self.host, prefix.removesuffix("/"), stop=work.stop)

    def open_api(self, credential: Credential | None, hint: str, *, api: Destination | None = None) -> ApiClient:
        """Return a client for the API at the origin of `api`, by default the registry. Use it in a `with` block.

        hint: what to do if the API denies access. Requests are anonymous until `ApiClient.authorize` is called."""
        policy = self.session.url_policy
        authorizer = ApiAuthorizer(policy.name if api is None else api.origin.netloc, credential, hint)
        return ApiClient(self.session.open_api(policy if api is None else policy.with_api(api), authorizer), authorizer)


class ApiAuthorizer(Anonymous):
    """An Authorizer that sends the same `Authorization` value with each request to an API. A 401 is not retried."""

    def __init__(self, host: str, credential: Credential | None, hint: str) -> None:
        self.credential = credential
        self.hint = hint
        self.value: str | None = None
        self._host = host

    def header(self, scopes: object, work: Work) -> str | None:
        """Return the `Authorization` value, or None for anonymous access."""
        return self.value

    def handle_challenge(self, scopes: object, challenges: Sequence[str], sent: str | None, work: Work) -> None:
        """Raise AuthError, because there is no other credential to send."""
        if self.credential is None:
            raise AuthError(f"{self._host} requires credentials", hint=self.hint, status=401)
        raise AuthError(f"{self._host} does not accept {self.credential.description}", hint=self.hint, status=401)


class Page(Struct, frozen=True):
    """One page of a list. next_query: the query of the next page, or None if this is the last page."""

    names: list[str]
    next_query: Mapping[str, str] | None = None


class PageResponse(Struct, frozen=True):
    """The response to a request for one page of a list. Methods raise RemoteError if its form is not as documented.

    what: the list, for error messages. document: the JSON document. query: the query of the request."""

    what: str
    document: Value
    headers: Headers
    query: Mapping[str, str]

    def field(self, key: str) -> Value:
        """Return the value under a key of the JSON document, or None if the key is missing."""
        return self.document.get(key) if isinstance(self.document, dict) else None

    def texts(self, key: str, *, list_key: str = "") -> list[str]:
        """Return the string under `key` of each object in the list under `list_key`.

        If `list_key` is empty, the document is the list."""
        items = self.field(list_key) if list_key else self.document
        return self._check_strings(
            [item.get(key) if isinstance(item, dict) else None for item in items] if isinstance(items, list) else None
        )

    def strings(self, list_key: str) -> list[str]:
        """Return the strings in the list under `list_key`."""
        return self._check_strings(self.field(list_key))

    def _check_strings(self, items: Value) -> list[str]:
        """Return `items` if it is a list of strings. Raises RemoteError if it is not."""
        names = [item for item in items if isinstance(item, str)] if isinstance(items, list) else []
        if not isinstance(items, list) or len(names) != len(items):
            what = f"the response from {self.what} is not a list of repositories in the documented form"
            raise RemoteError(what, hint=ONE_BY_ONE, status=200)
        return names

    def next_page(self) -> dict[str, str]:
        """Return the query of the next page in a list whose pages are numbered by the parameter `page`, from 1."""
        return {**self.query, "page": str(int(self.query["page"]) + 1)}

    @property
    def has_next_link(self) -> bool:
        """Whether the headers contain a Link to the next page."""
        return next_link(self.headers.get_all("link")) is not None


class ApiClient:
    """A client for the API of one product. Use it in a `with` block. Errors are those of `Session.call`."""

    def __init__(self, session: Session, authorizer: ApiAuthorizer) -> None:
        self.name = session.url_policy.name
        self._session = session
        self._authorizer = authorizer

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def authorize(self, *, scheme: str) -> None:
        """Send the credential, if there is one, with each request from now on.

        scheme: `Basic` for user name and password, `Bearer` for the password alone. Raises AuthError if the credential
        has no password."""
        credential = self._authorizer.credential
        if credential is not None and scheme == "Basic":
            self._authorizer.value = basic_authorization(credential.username or "", self.password_of(credential))
        elif credential is not None:
            self._authorizer.value = f"Bearer {self.password_of(credential)}"

    def send_token(self, token: str) -> None:
        """Send a bearer token with each request from now on."""
        self._authorizer.value = f"Bearer {token}"

    def password_of(self, credential: Credential) -> str:
        """Return the password of a credential. Raises AuthError if it has none."""
        if not credential.password:
            what = f"{self.name} requires a password, and does not accept {credential.description}"
            raise AuthError(what, hint=self._authorizer.hint)
        return credential.password

    def post(self, path: str, body: bytes, work: Work) -> Object:
        """Send a POST request with a JSON document, and return the object in the response."""
        headers = (_JSON, ("Content-Type", "application/json"))
        with self._add_hint():
            response = self._session.call("POST", path, work, kind="token", headers=headers, body=body, expect={200})
        document = self._parse(response.body, path)
        if not isinstance(document, dict):
            raise RemoteError(f"the response from {self.name}{path} is not a JSON object", status=200)
        return document

    def list_names(
        self,
        path: str,
        query: Mapping[str, str],
        read_page: Callable[[PageResponse], Page],
        work: Work,
        *,
        headers: Sequence[tuple[str, str]] = (),
    ) -> Iterator[str]:
        """Yield the names on all pages of a list, without duplicates.

        query: the query of the first page. Raises NotFound if the list does not exist, Refused (too_many) if a limit is
        exceeded, RemoteError if `read_page` raises it, or if a later page is missing."""
        seen: set[str] = set()
        following: Mapping[str, str] | None = query
        pages = without_names = 0
        while following is not None:
            if pages == MAX_PAGES:
                raise Refused(f"{self.name}{path} has more than {MAX_PAGES} pages", code="too_many")
            page = read_page(self._get_page(path, following, headers, work, is_first=not pages))
            new = [name for name in dict.fromkeys(page.names) if name not in seen]
            yield from new
            seen.update(new)
            pages, without_names = pages + 1, 0 if new else without_names + 1
            if len(seen) > MAX_NAMES:
                raise Refused(f"{self.name}{path} lists more than {MAX_NAMES} names", code="too_many")
            if without_names > MAX_EMPTY_PAGES:
                raise Refused(f"{self.name}{path}: too many pages in a row contain no new names", code="too_many")
            following = page.next_query

    def _get_page(
        self,
        path: str,
        query: Mapping[str, str],
        headers: Sequence[tuple[str, str]],
        work: Work,
        *,
        is_first: bool,
    ) -> PageResponse:
        """Request one page of a list."""
        try:
            with self._add_hint():
                response = self._session.call(
                    "GET",
                    f"{path}?{urlencode(query)}",
                    work,
                    kind="repositories",
                    headers=headers or (_JSON,),
                    expect={200},
                    limit=MAX_PAGE_BYTES,
                )
        except TooBig as error:
            raise Refused(error.what, hint=ONE_BY_ONE, code="too_many", status=error.status) from error
        except NotFound as error:
            if is_first:
                raise
            # Raise RemoteError instead of NotFound, after which callers would look for another list.
            raise RemoteError(f"a later page of the list is missing: {error.what}", status=error.status) from error
        return PageResponse(f"{self.name}{path}", self._parse(response.body, path), response.headers, query)

    @contextmanager
    def _add_hint(self) -> Iterator[None]:
        """Add the hint of this client to an AuthError that is raised in the `with` block and has no hint."""
        try:
            yield
        except AuthError as error:
            error.hint = error.hint or self._authorizer.hint
            raise

    def _parse(self, body: bytes, path: str) -> Value:
        """Return the JSON document in a response. Raises RemoteError if the JSON is invalid."""
        try:
            return strictjson.parse(body, what=f"the response from {self.name}{path}", code="bad_response", fold=False)
        except Refused as error:
            raise RemoteError(error.what, hint=error.hint, status=200) from error

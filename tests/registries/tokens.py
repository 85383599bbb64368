"""A bearer token service that docker-registry accepts: RS256, with the certificate in the token's header."""

from __future__ import annotations

import base64
import datetime
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.registries.certificates import Authority
from tests.registries.exchange import Reply, Request, json_reply
from tests.registries.http1 import head_bytes, simple_exchanges
from tests.registries.listener import Listener

ISSUER, SERVICE = "mirror-tests-issuer", "mirror-tests-registry"
PATH = "/auth/token"
LEEWAY = 60  # seconds of leeway in docker-registry; subtracted, so that a token's lifetime is exact

Access = list[dict[str, Any]]
_ALL = ("pull", "push", "delete")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request to the service. scopes: as requested. user: empty for anonymous. identity: by a refresh token."""

    method: str
    status: int
    user: str
    service: str
    scopes: tuple[str, ...]
    identity: bool = False


class TokenService:
    """Issues tokens on its own port, or (as a hook: call it) inside a proxy or another server. Use with `with`.

    root: a directory for the files that a real registry must trust. users: name -> password; with any, anonymous
    requests only get the `anonymous` actions. life: seconds. allow: (user, repository, action) -> bool, an additional
    condition. last_scope_only: only the last scope counts. one_scope: more than one scope gets 403. field: `token` or
    `access_token`. says_life: the response has `expires_in`. realm: the URL for clients; default: its own port.
    Everything may be changed between requests."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        users: Mapping[str, str] | None = None,
        life: int = 300,
        anonymous: tuple[str, ...] = (),
        allow: Callable[[str, str, str], bool] | None = None,
        last_scope_only: bool = False,
        one_scope: bool = False,
        field: str = "token",
        says_life: bool = True,
        tls: Authority | None = None,
        realm: str = "",
    ) -> None:
        self.users, self.life, self.anonymous, self.allow = dict(users or {}), life, anonymous, allow
        self.last_scope_only, self.one_scope = last_scope_only, one_scope
        self.field, self.says_life, self.realm = field, says_life, realm
        self.fault: Callable[[Request], Reply | None] | None = None  # may answer instead
        self.asked: list[TokenRequest] = []
        self.issued: list[str] = []
        self._known: set[str] = set()  # these, and the tokens of the tests' own requests
        self._tls, self._listener = tls, None if realm else self._listen(tls)
        if self._listener:
            self.realm = f"http{'s' if tls else ''}://{self._listener.host}{PATH}"
        self._root = root
        self._own: dict[tuple[str, ...], tuple[float, str]] = {}
        if self._listener:
            self._listener.start()

    def _listen(self, tls: Authority | None) -> Listener:
        context = tls.server_context() if tls else None
        return Listener(self._serve, name="tokens", tls=context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._listener:
            self._listener.stop()

    # ---- for a real registry, and for our own requests to it

    def registry_settings(self) -> dict[str, str]:
        """Return the `auth.token` section of a docker-registry that trusts this service. Raises RuntimeError without
        `root`."""
        if self._root is None:
            raise RuntimeError("a token service for a real registry needs a folder")
        self._root.mkdir(parents=True, exist_ok=True)
        bundle = self._root / "token-issuer.pem"
        bundle.write_bytes(_signer().public_bytes(Encoding.PEM))
        return {"realm": self.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(bundle)}

    def access_of(self, token: str) -> tuple[Access, bool]:
        """Return the access that a token of this service allows, and whether it is still valid; nothing for other
        tokens."""
        if token not in self._known:
            return [], False
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==="))
        access: Access = claims["access"]
        return access, time.time() < claims["exp"] + LEEWAY

    def own_token(self, repositories: tuple[str, ...]) -> str:
        """Return a header that allows everything in the repository; not counted."""
        expires, value = self._own.get(repositories, (0.0, ""))
        if expires < time.monotonic():
            access: Access = [
                {"type": "repository", "name": name, "actions": list(_ALL)} for name in repositories if name
            ]
            access.append({"type": "registry", "name": "catalog", "actions": ["*"]})
            token = sign("tests", access, 600)
            self._known.add(token)
            value = f"Bearer {token}"
            self._own[repositories] = time.monotonic() + 300, value
        return value

    # ---- the service

    def __call__(self, request: Request) -> Reply | None:
        """Answer a request for a token; return None for other requests."""
        if request.path != PATH:
            return None
        if self.fault and (reply := self.fault(request)):
            return reply
        form = parse_qs(request.body.decode("latin-1")) if request.method == "POST" else request.query
        scopes = tuple(scope for value in form.get("scope", []) for scope in value.split())
        user, identity = self._who(request, form)
        service = form.get("service", [""])[0]
        status = 401 if user is None else 403 if self.one_scope and len(scopes) > 1 else 200
        self.asked.append(TokenRequest(request.method, status, user or "", service, scopes, identity))
        if status != 200 or user is None:
            return json_reply(status, {"details": "incorrect username or password" if status == 401 else "one scope"})
        return self._grant(user, scopes, form, post=request.method == "POST")

    def _who(self, request: Request, form: Mapping[str, list[str]]) -> tuple[str | None, bool]:
        """Return the user ("" for anonymous, None for a wrong password), and whether an identity token was used."""
        refresh = form.get("refresh_token", [""])[0]
        if refresh:
            name = refresh.removeprefix("identity-of-")
            return (name if name in self.users else None), True
        name, password = form.get("username", [""])[0], form.get("password", [""])[0]
        basic = request.header("Authorization") or ""
        if basic.lower().startswith("basic "):
            name, _, password = base64.b64decode(basic[6:]).decode().partition(":")
        if not name:
            return "", False
        return (name if self.users.get(name) == password else None), False

    def _grant(self, user: str, scopes: tuple[str, ...], form: Mapping[str, list[str]], *, post: bool) -> Reply:
        counted = scopes[-1:] if self.last_scope_only else scopes
        token = sign(user, [entry for entry in map(self._access(user), counted) if entry["actions"]], self.life)
        self.issued.append(token)
        self._known.add(token)
        response: dict[str, Any] = {"access_token" if post else self.field: token}
        if self.says_life:
            response["expires_in"] = self.life
            response["issued_at"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        offline = form.get("offline_token") == ["true"] or form.get("access_type") == ["offline"]
        if user and offline:
            response["refresh_token"] = f"identity-of-{user}"
        return json_reply(200, response)

    def _access(self, user: str) -> Callable[[str], dict[str, Any]]:
        def access(scope: str) -> dict[str, Any]:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [action for action in actions.split(",") if self._may(user, name, action)]
            return {"type": kind, "name": name, "actions": allowed}

        return access

    def _may(self, user: str, name: str, action: str) -> bool:
        if self.users and not user and action not in self.anonymous:
            return False
        return self.allow is None or self.allow(user, name, action)

    def _serve(self, connection: socket.socket, number: int) -> None:
        for incoming, body in simple_exchanges(connection):
            request = Request(incoming.method, incoming.target, incoming.headers, body, connection=number)
            reply = self(request) or json_reply(404, {})
            connection.sendall(head_bytes(reply) + reply.body)


def sign(user: str, access: Iterable[Mapping[str, Any]], life: int) -> str:
    """Return a token for `access` that docker-registry accepts for `life` seconds."""
    now = int(time.time())
    header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(_signer().public_bytes(Encoding.DER)).decode()]}
    claims = {
        "iss": ISSUER,
        "sub": user,
        "aud": SERVICE,
        "iat": now - 2 * LEEWAY,
        "nbf": now - 2 * LEEWAY,
        "exp": now + life - LEEWAY,
        "jti": f"token-{next(_serial)}",
        "access": list(access),
    }
    signed = f"{_url64(json.dumps(header).encode())}.{_url64(json.dumps(claims).encode())}"
    return f"{signed}.{_url64(_key().sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


_serial = itertools.count(1)


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def _signer() -> x509.Certificate:
    """A root of its own, created once for the test session because keys are slow to generate."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mirror tests token issuer")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(_key(), hashes.SHA256())
    )


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

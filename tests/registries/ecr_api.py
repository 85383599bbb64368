"""The API of Amazon ECR: moto's server on loopback, behind a front that counts, refuses and issues passwords."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "secret-key-of-the-tests"}
HALF_A_DAY = 12 * 3600.0

_StartResponse = Callable[..., Callable[[bytes], object]]
_moto = DomainDispatcherApplication(create_backend_app)


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass

    def send_response(self, code: int, message: str | None = None) -> None:
        """Send no headers, so that the response has only the Date of the application."""
        self.send_response_only(code, message)


class EcrServer:
    """Use with `with`. Passwords and ECR Public are not moto's: its password is always the same, and has expired.

    calls: (operation, parameters) of every call, in order. failures: operation -> (status, code, message), sent instead
    of the response. documents: operation -> the document that is sent instead. page_size: the maximum number of
    repositories in a page. created: called with the name of each new repository, before the response. issued: called
    with each new password. life: seconds of a password. ahead: seconds by which the clock of AWS is ahead of ours."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.failures: dict[str, tuple[int, str, str]] = {}
        self.documents: dict[str, dict[str, Any]] = {}
        self.page_size: int | None = None
        self.created: Callable[[str], object] = str
        self.issued: Callable[[str], object] = str
        self.life = HALF_A_DAY
        self.ahead = 0.0
        self.passwords: list[str] = []
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="ecr-api")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def names(self) -> list[str]:
        """Return the operations that were called."""
        return [operation for operation, _ in self.calls]

    def environment(self, region: str = "eu-west-1") -> dict[str, str]:
        """Return the variables that lead boto3 here."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": region}

    def _serve(self, environ: dict[str, Any], start: _StartResponse) -> Iterable[bytes]:
        service, _, operation = environ.get("HTTP_X_AMZ_TARGET", "").partition(".")
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        parameters = json.loads(body or b"{}")
        self.calls.append((operation, parameters))
        failure = self.failures.get(operation)
        if failure is not None:
            status, code, message = failure
            return self._reply(start, {"__type": code, "message": message}, f"{status} Refused")
        if operation in self.documents:
            return self._reply(start, self.documents[operation])
        is_public = service.startswith("Spencer")
        if operation == "GetAuthorizationToken":
            return self._reply(start, self._token(is_public=is_public))
        if is_public:
            self.created(parameters["repositoryName"])
            return self._reply(start, {"repository": {"repositoryName": parameters["repositoryName"]}})
        statuses: list[str] = []

        def note(status: str, *rest: object) -> Callable[[bytes], object]:
            statuses.append(status)
            if operation == "CreateRepository" and status.startswith("200"):
                self.created(parameters["repositoryName"])
            return start(status, *rest)

        environ["wsgi.input"] = io.BytesIO(body)
        if operation == "DescribeRepositories":
            return self._reply(start, self._page(environ, parameters))
        reply: Iterable[bytes] = _moto(environ, note)
        return reply

    def _page(self, environ: dict[str, Any], parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a page of the repositories. moto returns all of them in one page."""
        document = json.loads(b"".join(_moto(environ, lambda *_: bytes)))
        first = int(parameters.get("nextToken", "0"))
        after = first + (self.page_size or parameters.get("maxResults", 100))
        found = document["repositories"]
        return {"repositories": found[first:after], **({"nextToken": str(after)} if after < len(found) else {})}

    def _token(self, *, is_public: bool) -> Mapping[str, Any]:
        password = f"password-{len(self.passwords) + 1}-of-ecr"
        self.passwords.append(password)
        self.issued(password)
        token = base64.b64encode(f"AWS:{password}".encode()).decode()
        data = {"authorizationToken": token, "expiresAt": time.time() + self.ahead + self.life}
        return {"authorizationData": data if is_public else [data]}

    def _reply(self, start: _StartResponse, document: Mapping[str, Any], status: str = "200 OK") -> Iterable[bytes]:
        body = json.dumps(document).encode()
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + self.ahead))
        length = ("Content-Length", str(len(body)))
        start(status, [("Content-Type", "application/x-amz-json-1.1"), length, ("Date", date)])
        return [body]

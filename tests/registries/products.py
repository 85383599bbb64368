"""The APIs with which products list their repositories, as hooks of the scripted registry.

Each has the documented form of requests, pages and errors, and small pages, whatever the client asks for.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from tests.registries.exchange import Hook, Reply, Request, error_reply, json_reply

PAGE = 2
Lists = Mapping[str, Sequence[str]]


def _page(request: Request, names: Sequence[str]) -> tuple[list[str], int | None]:
    """Return the names on the requested page, and the number of the next page, if there is one."""
    number = int(request.query["page"][0])
    following = number + 1 if len(names) > number * PAGE else None
    return list(names[(number - 1) * PAGE : number * PAGE]), following


def _next_link(url: str | None) -> tuple[tuple[str, str], ...]:
    return () if url is None else (("Link", f'<{url}>; rel="next"'),)


def _basic(request: Request) -> str:
    scheme, _, value = (request.header("Authorization") or "").partition(" ")
    return base64.b64decode(value).decode() if scheme == "Basic" else ""


def _bearer(request: Request) -> str:
    scheme, _, value = (request.header("Authorization") or "").partition(" ")
    return value if scheme == "Bearer" else ""


def docker_hub(public: Lists, private: Lists | None = None, *, login: tuple[str, str] = ("", "")) -> Hook:
    """Play hub.docker.com. public, private: names by namespace. login: the only account; it sees what is private."""

    def hook(request: Request) -> Reply | None:
        if request.path == "/v2/auth/token":
            sent = json.loads(request.body)
            if (sent["identifier"], sent["secret"]) != login:
                return json_reply(401, {"detail": "Incorrect authentication credentials"})
            return json_reply(200, {"access_token": "hub-access-token"})
        parts = request.path.split("/")
        if parts[:3] != ["", "v2", "namespaces"] or parts[4:] != ["repositories"]:
            return None
        names = list(public.get(parts[3], ()))
        if _bearer(request):
            assert "hub-access-token" == _bearer(request)
            names += (private or {}).get(parts[3], ())
        if not names:
            return json_reply(404, {"message": "object not found", "errinfo": {}})
        found, following = _page(request, names)
        url = f"https://hub.docker.com{request.path}?page={following}&page_size=100" if following else None
        results = [{"name": name, "namespace": parts[3], "is_private": name not in public} for name in found]
        return json_reply(200, {"count": len(names), "next": url, "previous": None, "results": results})

    return hook


def quay(public: Lists, private: Lists | None = None, *, token: str = "") -> Hook:
    """Play quay.io. token: an OAuth token, whose user sees what is private. Tokens for the catalog are refused."""

    def hook(request: Request) -> Reply | None:
        if request.path == "/v2/auth":
            return error_reply(400, "INVALID_REQUEST", "Unable to decode repository and actions")
        if request.path != "/api/v1/repository":
            return None
        sent = _bearer(request)
        if request.header("Authorization") and sent != token:
            return json_reply(401, {"error_message": "Invalid bearer token format", "status": 401})
        assert ["true"] == request.query["public"]
        lists = [public, private or {}] if sent else [public]
        wanted = request.query.get("namespace", list(public))
        found = [(space, name) for space in wanted for names in lists for name in names.get(space, ())]
        start = int(request.query.get("next_page", ["token-0"])[0].removeprefix("token-"))
        document = {
            "repositories": [
                {"namespace": space, "name": name, "kind": "image", "is_public": name in public.get(space, ())}
                for space, name in found[start : start + PAGE]
            ]
        }
        more = {"next_page": f"token-{start + PAGE}"} if len(found) > start + PAGE else {}
        return json_reply(200, document | more)

    return hook


def github(organizations: Lists, users: Lists, *, token: str) -> Hook:
    """Play api.github.com. Links have the number of the owner."""

    def hook(request: Request) -> Reply | None:
        parts = request.path.split("/")
        lists = {"orgs": organizations, "users": users}.get(parts[1])
        if lists is None or parts[3:] != ["packages"]:
            return None
        if _bearer(request) != token:
            return json_reply(401, {"message": "Requires authentication", "status": "401"})
        assert ["container"] == request.query["package_type"]
        if parts[2] not in lists:
            return json_reply(404, {"message": "Not Found", "status": "404"})
        found, following = _page(request, lists[parts[2]])
        url = f"https://api.github.com/organizations/17/packages?page={following}" if following else None
        return json_reply(
            200, [{"id": 1, "name": name, "package_type": "container"} for name in found], *_next_link(url)
        )

    return hook


def harbor(projects: Lists, *, robot: str, public: Sequence[str] = ()) -> Hook:
    """Play Harbor. robot: `user:password`. public: projects that need no account. The catalog is closed."""

    def hook(request: Request) -> Reply | None:
        realm = f'Bearer realm="http://{request.header("Host")}/service/token",service="harbor-registry"'
        if request.path == "/service/token":
            return json_reply(200, {"token": "a-token-without-access"})
        if request.path in ("/v2/", "/v2/_catalog"):
            return error_reply(401, "UNAUTHORIZED", "unauthorized to list catalog", ("WWW-Authenticate", realm))
        if not request.path.startswith("/api/v2.0/"):
            return None
        project = request.path.split("/")[4] if "/projects/" in request.path else ""
        if _basic(request) != robot and (request.header("Authorization") or project not in public):
            return error_reply(401, "UNAUTHORIZED", "unauthorized")
        if project and project not in projects:
            return error_reply(403, "FORBIDDEN", f"the project {project} does not exist or is not visible")
        every = [f"{name}/{one}" for name in projects for one in projects[name] if project in ("", name)]
        found, following = _page(request, every)
        url = f"{request.path}?page={following}&page_size=100" if following else None
        items = [{"name": name, "artifact_count": 1, "pull_count": 0} for name in found]
        return json_reply(200, items, *_next_link(url))

    return hook


def gitlab(groups: Lists, projects: Lists, *, token: str, base: str = "", service: str = "") -> Hook:
    """Play GitLab. groups, projects: paths of images by the path of their owner. token: of an account with read_api.

    base: the path of an installation below a relative URL. service: the URL of the host of token service and API, if it
    is not the registry."""

    def hook(request: Request) -> Reply | None:
        url = service or f"http://{request.header('Host')}"
        realm = f'Bearer realm="{url}{base}/jwt/auth",service="container_registry"'
        if request.path == f"{base}/jwt/auth":
            return json_reply(200, {"token": "a-token-without-access"})
        if request.path in ("/v2/", "/v2/_catalog"):
            return error_reply(401, "UNAUTHORIZED", "authentication required", ("WWW-Authenticate", realm))
        if not request.path.startswith(f"{base}/api/v4/"):
            return None
        if _bearer(request) != token:
            return json_reply(401, {"message": "401 Unauthorized"})
        kind, owner, *rest = request.path.removeprefix(f"{base}/api/v4/").split("/")
        assert ["registry", "repositories"] == rest
        names = {"groups": groups, "projects": projects}[kind].get(unquote(owner))
        if names is None:
            return json_reply(404, {"message": f"404 {kind[:-1].title()} Not Found"})
        found, following = _page(request, names)
        items = [{"id": 1, "name": "", "path": path, "location": f"registry.example.com/{path}"} for path in found]
        return json_reply(200, items, ("X-Next-Page", str(following or "")), ("X-Total", str(len(names))))

    return hook


def artifactory(repositories: Lists, *, account: str, header: bool = True) -> Hook:
    """Play Artifactory with repositories by path. account: `user:password`. header: the ping shows the product.

    Otherwise, the ping needs an account, and only the realm shows it."""

    def hook(request: Request) -> Reply | None:
        if request.path == "/v2/_catalog":
            return json_reply(404, {"errors": [{"status": 404, "message": "Not Found"}]})
        if request.path == "/artifactory/api/system/ping" and header:
            return Reply(200, (("X-Artifactory-Id", "6e921143e3a9e856"),), b"OK")
        if not request.path.startswith("/artifactory/"):
            return None
        if _basic(request) != account:
            realm = ("WWW-Authenticate", 'Basic realm="Artifactory Realm"')
            return json_reply(401, {"errors": [{"status": 401, "message": "Authentication is required"}]}, realm)
        key = request.path.removeprefix("/artifactory/api/docker/").removesuffix("/v2/_catalog")
        if key not in repositories:
            return json_reply(404, {"errors": [{"status": 404, "message": "No repo found"}]})
        last = request.query.get("last", [""])[0]
        return json_reply(200, {"repositories": [name for name in sorted(repositories[key]) if name > last][:PAGE]})

    return hook


def first_of(*hooks: Hook) -> Hook:
    """Return a hook that answers as the first of these that answers."""

    def hook(request: Request) -> Reply | None:
        return next((reply for one in hooks if (reply := one(request))), None)

    return hook

"""Harbor, as far as projects are concerned: a scripted registry that requires them, and the API that creates them.

Source: goharbor/harbor, src/server/middleware/v2auth/auth.go and src/server/v2.0/handler/project.go."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.scripted import ScriptedRegistry

API = "/api/v2.0/projects"
USER, PASSWORD = "mirror", "harbor-password-1"


class Harbor:
    """Makes a scripted registry (with `bearer=True, users={USER: PASSWORD}`) behave like Harbor.

    projects: by name, as requested. api: what the API was asked: (Authorization, document). failure: sent instead of
    its response."""

    def __init__(self, registry: ScriptedRegistry, *projects: str) -> None:
        self.registry = registry
        self.projects: dict[str, dict[str, Any]] = {name: {} for name in projects}
        self.api: list[tuple[str, dict[str, Any]]] = []
        self.failure: Reply | None = None
        assert registry.tokens is not None
        registry.tokens.allow = lambda user, repository, action: repository.partition("/")[0] in self.projects
        registry.hook = self._answer

    def _answer(self, request: Request) -> Reply | None:
        if request.path == API and request.method == "POST":
            return self._create(request)
        project = request.repository.partition("/")[0]
        if not project or project in self.projects:
            return None
        if request.method == "HEAD":
            if request.header("Authorization") is None:
                return None  # asks for a token first
            return Reply(401, [("WWW-Authenticate", ""), ("Docker-Distribution-Api-Version", "registry/2.0")])
        what = f"project {project} not found"
        version = ("Docker-Distribution-Api-Version", "registry/2.0")
        return error_reply(401, "UNAUTHORIZED", f"{what}: {what}", ("WWW-Authenticate", ""), version)

    def _create(self, request: Request) -> Reply:
        document = json.loads(request.body)
        self.api.append((request.header("Authorization") or "", document))
        if self.failure is not None:
            return self.failure
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.header("Authorization") != basic:
            return error_reply(401, "UNAUTHORIZED", "unauthorized")
        name = document["project_name"]
        if name in self.projects:
            return error_reply(409, "CONFLICT", f"The project named {name} already exists")
        self.projects[name] = document
        return Reply(201, [("Location", f"{API}/{len(self.projects)}")])

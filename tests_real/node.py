"""Starts the v1 server written in Node, and pushes images to it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.registries.certificates import Authority

SCRIPT = Path(__file__).with_name("server.js")
PACKAGES = Path(os.environ.get("MIRROR_NODE_PATH", Path(__file__).parent.parent / ".venv/node/node_modules"))


class NodeRegistry:
    """A standalone v1 registry on a port chosen by the system. Use with `with`."""

    tls: Authority | None = None

    def __init__(self, folder: Path, login: str = "") -> None:
        self._folder = folder
        self._login = login
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        self._process = subprocess.Popen(
            ["node", "--no-deprecation", str(SCRIPT), str(self._folder), "0", self._login],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "NODE_PATH": str(PACKAGES)},
        )
        first = self._process.stdout.readline() if self._process.stdout else ""
        if not first.strip().isdigit():
            self.__exit__()
            raise RuntimeError(f"the v1 server does not start: {first}")
        self.port = int(first)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def put(self, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json"}
        if self._login:
            headers["Authorization"] = f"Basic {base64.b64encode(self._login.encode()).decode()}"
        try:
            connection.request("PUT", path, body, headers)
            response = connection.getresponse()
            response.read()
        finally:
            connection.close()
        if response.status not in (200, 204):
            raise RuntimeError(f"PUT {path}: {response.status}")

    def image(self, document: Mapping[str, Any], layer: bytes) -> None:
        """Push an image with its layer."""
        self.put(f"/v1/images/{document['id']}/json", json.dumps(document).encode())
        self.put(f"/v1/images/{document['id']}/layer", layer)

    def tag(self, repository: str, tag: str, image_id: str) -> None:
        self.put(f"/v1/repositories/{repository}/tags/{tag}", json.dumps(image_id).encode())

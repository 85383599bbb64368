"""Clients that push and pull in the demonstration: skopeo, or a small client of the tests if it is not installed.

Neither shares code with `mirror`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from demo.checks import CheckFailed
from demo.images import Layout
from demo.registries import RecordingRegistry
from tests.registries.client import sha256

Run = Callable[..., bytes]  # CommandRunner.run


class DemoClient(Protocol):
    """A client that pushes and pulls. name: for messages."""

    name: str

    def push(self, layout: Layout, tag: str, registry: RecordingRegistry, repository: str) -> None:
        """Push the image under a tag of a layout to a repository."""
        ...

    def raw(self, registry: RecordingRegistry, repository: str, tag: str) -> bytes:
        """Read the bytes of the manifest or index under a tag."""
        ...

    def pull(self, registry: RecordingRegistry, repository: str, tag: str, *, architecture: str, to: Path) -> None:
        """Pull the image for one architecture into a folder: manifest.json, and blobs by the hex of their digests."""
        ...


class SkopeoClient:
    """Runs skopeo. run: runs a command and prints it."""

    name = "skopeo"

    def __init__(self, run: Run) -> None:
        self._run = run

    def push(self, layout: Layout, tag: str, registry: RecordingRegistry, repository: str) -> None:
        goal = f"docker://{registry.host}/{repository}:{tag}"
        self._run(
            self._command("copy", "--quiet", "--all", "--dest-tls-verify=false", f"oci:{layout.root}:{tag}", goal),
            shown=f"skopeo copy --all --dest-tls-verify=false oci:built/{repository}:{tag} {goal}",
        )

    def raw(self, registry: RecordingRegistry, repository: str, tag: str) -> bytes:
        reference = f"docker://{registry.host}/{repository}:{tag}"
        return self._run(self._command("inspect", "--raw", "--tls-verify=false", reference))

    def pull(self, registry: RecordingRegistry, repository: str, tag: str, *, architecture: str, to: Path) -> None:
        reference = f"docker://{registry.host}/{repository}:{tag}"
        self._run(
            self._command(
                "copy", "--quiet", "--src-tls-verify=false", reference, f"dir:{to}", architecture=architecture
            ),
            shown=f"skopeo --override-arch {architecture} copy --src-tls-verify=false {reference} dir:pulled",
        )

    def _command(self, command: str, *arguments: str, architecture: str = "") -> list[str]:
        # A fresh machine may have no signature policy file.
        chosen = [f"--override-arch={architecture}"] if architecture else []
        return ["skopeo", "--insecure-policy", *chosen, command, *arguments]


class PlainClient:
    """The client of the tests. It verifies the digests of everything that it reads."""

    name = "the client of the tests"

    def push(self, layout: Layout, tag: str, registry: RecordingRegistry, repository: str) -> None:
        print(f"  push built/{repository}:{tag} to {registry.host}/{repository}:{tag}", flush=True)
        index = json.loads((layout.root / "index.json").read_bytes())
        root = next(
            entry for entry in index["manifests"] if entry["annotations"]["org.opencontainers.image.ref.name"] == tag
        )
        with registry.client() as client:
            self._push(client, layout, repository, root, tag)

    def _push(self, client: Any, layout: Layout, repository: str, descriptor: dict[str, Any], reference: str) -> None:
        body = layout.read(descriptor["digest"])
        document = json.loads(body)
        for child in document.get("manifests", []):
            self._push(client, layout, repository, child, child["digest"])
        for blob in [*document.get("layers", []), *([document["config"]] if "config" in document else [])]:
            if not client.has_blob(repository, blob["digest"]):
                client.put_blob(repository, layout.read(blob["digest"]))
        client.put_manifest(repository, reference, body, descriptor["mediaType"])

    def raw(self, registry: RecordingRegistry, repository: str, tag: str) -> bytes:
        with registry.client() as client:
            response = client.manifest(repository, tag)
        if response.status != 200:
            raise CheckFailed(f"{registry.host}/{repository}:{tag} is {response.status}")
        return response.body

    def pull(self, registry: RecordingRegistry, repository: str, tag: str, *, architecture: str, to: Path) -> None:
        print(f"  pull {registry.host}/{repository}:{tag} for {architecture}", flush=True)
        index = json.loads(self.raw(registry, repository, tag))
        children = [one["digest"] for one in index["manifests"] if one["platform"]["architecture"] == architecture]
        body = self.raw(registry, repository, children[0])
        manifest = json.loads(body)
        (to / "manifest.json").write_bytes(body)
        with registry.client() as client:
            for blob in (manifest["config"], *manifest["layers"]):
                data = client.blob(repository, blob["digest"]).body
                if sha256(data) != blob["digest"]:
                    raise CheckFailed(f"{blob['digest']} of {repository} has other bytes")
                (to / blob["digest"].removeprefix("sha256:")).write_bytes(data)

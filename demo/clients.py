"""The clients that push and pull images in the demonstration.

The demonstration uses skopeo if it is installed, otherwise a small client from the tests. Neither of them shares code
with `mirror`."""

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
    """A client that pushes and pulls images. name: the name of the client in messages."""

    name: str

    def push(self, layout: Layout, tag: str, registry: RecordingRegistry, repository: str) -> None:
        """Push an image from a layout to a repository, under the same tag."""
        ...

    def read_manifest(self, registry: RecordingRegistry, repository: str, tag: str) -> bytes:
        """Return the bytes of the manifest or index to which a tag refers. Raises CheckFailed if that fails."""
        ...

    def pull(self, registry: RecordingRegistry, repository: str, tag: str, *, architecture: str, to: Path) -> None:
        """Pull the image for one architecture into the folder `to`.

        The manifest is written to manifest.json. Each blob is written to a file that is named by the hexadecimal part
        of the blob's digest. Raises CheckFailed if that fails."""
        ...


class SkopeoClient:
    """A client that runs the command skopeo."""

    name = "skopeo"

    def __init__(self, run: Run) -> None:
        """run: a function that runs a command and prints it."""
        self._run = run

    def push(self, layout: Layout, tag: str, registry: RecordingRegistry, repository: str) -> None:
        goal = f"docker://{registry.host}/{repository}:{tag}"
        self._run(
            self._command("copy", "--quiet", "--all", "--dest-tls-verify=false", f"oci:{layout.root}:{tag}", goal),
            shown=f"skopeo copy --all --dest-tls-verify=false oci:built/{repository}:{tag} {goal}",
        )

    def read_manifest(self, registry: RecordingRegistry, repository: str, tag: str) -> bytes:
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
        # Without this option, skopeo needs a signature policy file, which a new machine may not have.
        chosen = [f"--override-arch={architecture}"] if architecture else []
        return ["skopeo", "--insecure-policy", *chosen, command, *arguments]


class PlainClient:
    """A client that uses the registry client of the tests. It verifies the digests of the blobs that it pulls."""

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
        """Push the manifest of a descriptor, after everything that it refers to."""
        body = layout.read(descriptor["digest"])
        document = json.loads(body)
        for child in document.get("manifests", []):
            self._push(client, layout, repository, child, child["digest"])
        for blob in [*document.get("layers", []), *([document["config"]] if "config" in document else [])]:
            if not client.has_blob(repository, blob["digest"]):
                client.put_blob(repository, layout.read(blob["digest"]))
        client.put_manifest(repository, reference, body, descriptor["mediaType"])

    def read_manifest(self, registry: RecordingRegistry, repository: str, tag: str) -> bytes:
        with registry.client() as client:
            response = client.manifest(repository, tag)
        if response.status != 200:
            raise CheckFailed(f"reading {registry.host}/{repository}:{tag} failed with status {response.status}")
        return response.body

    def pull(self, registry: RecordingRegistry, repository: str, tag: str, *, architecture: str, to: Path) -> None:
        print(f"  pull {registry.host}/{repository}:{tag} for {architecture}", flush=True)
        index = json.loads(self.read_manifest(registry, repository, tag))
        children = [one["digest"] for one in index["manifests"] if one["platform"]["architecture"] == architecture]
        body = self.read_manifest(registry, repository, children[0])
        manifest = json.loads(body)
        (to / "manifest.json").write_bytes(body)
        with registry.client() as client:
            for blob in (manifest["config"], *manifest["layers"]):
                data = client.blob(repository, blob["digest"]).body
                if sha256(data) != blob["digest"]:
                    raise CheckFailed(f"the content of {blob['digest']} in {repository} does not match its digest")
                (to / blob["digest"].removeprefix("sha256:")).write_bytes(data)

"""Steps of the demonstration: run commands, compare images, and run a program from an image."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from demo.checks import CheckFailed, check
from demo.clients import DemoClient
from demo.images import Layout
from demo.programs import ARCHITECTURES
from demo.registries import RecordingRegistry
from tests.registries.access import Seen
from tests.registries.client import sha256
from tests.support.oracle import walk_tag

ROOT = Path(__file__).resolve().parent.parent
_COMMAND_SECONDS = 120


class CommandRunner:
    """Runs commands in the demonstration's folder, which contains demo.yaml and a separate home directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._layouts: dict[str, Layout] = {}
        home = folder / "home"
        home.mkdir()
        # The user's settings (credentials, proxies) must not affect the demonstration.
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.environment = kept | {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "XDG_STATE_HOME": str(home),
            "PYTHONPATH": str(ROOT),
        }
        for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
            self.environment.pop(name, None)

    def run(self, command: list[str], *, shown: str = "", ok: Iterable[int] = (0,)) -> bytes:
        """Run a command in the folder and return its standard output.

        shown: the text to print for the command; "" prints nothing. ok: the expected exit codes. Raises CheckFailed if
        the command has another exit code or takes too long."""
        if shown:
            print(f"  $ {shown}", flush=True)
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"`{shown or ' '.join(command)}` did not finish within {_COMMAND_SECONDS} s") from error
        if done.returncode not in ok:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise CheckFailed(f"`{shown or ' '.join(command)}` ended with exit code {done.returncode}:\n{said}")
        return done.stdout

    def layout(self, repository: str) -> Layout:
        """Return the OCI image layout from which `repository` is pushed."""
        if repository not in self._layouts:
            self._layouts[repository] = Layout(self.folder / "built" / repository)
        return self._layouts[repository]

    def blobs(self) -> set[str]:
        """Return the digests of all configs and layers in the layouts."""
        return {digest for layout in self._layouts.values() for digest in layout.blobs}

    def sync(self, *, copied: int, up_to_date: int) -> None:
        """Run `mirror sync`, print its summary, and check the numbers in its report. Raises CheckFailed."""
        summary = self.run([sys.executable, "-m", "mirror", "sync", "demo.yaml"], shown="mirror sync demo.yaml")
        print("".join(f"    {line}\n" for line in summary.decode().splitlines()), end="")
        report = json.loads((self.folder / "state" / "report.json").read_bytes())
        counts = report["totals"]["images"]
        check(
            (counts["copied"], counts["up-to-date"], counts["failed"]) == (copied, up_to_date, 0)
            and report["exit"] == 0,
            f"report.json: {copied} references copied, {up_to_date} up to date, none failed",
        )


def compare(
    client: DemoClient, source: RecordingRegistry, target: RecordingRegistry, pushed: Mapping[str, str]
) -> None:
    """Check that every pushed image is on the target, byte for byte and complete.

    pushed: the digests of the pushed images by `repository:tag` at the source. Raises CheckFailed."""
    print(f"  manifests on {target.host}, read with {client.name}:")
    for reference, digest in sorted(pushed.items()):
        repository, _, tag = reference.partition(":")
        copy = repository.replace("tools/", "copies/", 1)
        there, here = client.read_manifest(source, repository, tag), client.read_manifest(target, copy, tag)
        equal = there == here and sha256(here) == digest
        print(f"    {f'{copy}:{tag}':24} {sha256(here)[:27]}...  {'equal' if equal else 'DIFFERENT'}")
        if not equal:
            raise CheckFailed(f"{copy}:{tag} on the target differs from {reference} on the source")
        walk = walk_tag(target, copy, tag)
        if walk.problems or walk.digest != digest:
            raise CheckFailed(f"{copy}:{tag} is not complete: {walk.problems}")
    check(True, f"all {len(pushed)} references have the bytes and the digest of the pushed images")
    check(True, "every blob and manifest that they refer to exists and was read and hashed")


def run_from_image(
    runner: CommandRunner,
    client: DemoClient,
    registry: RecordingRegistry,
    reference: str,
    program: str,
    *,
    expected: str,
) -> None:
    """Pull an image for this machine's architecture, unpack its layers, and run a program from it.

    If the images do not support this architecture, the program is not run. expected: the start of the output of
    `program --version`. Raises CheckFailed."""
    machines = {machine: architecture for architecture, (machine, _) in ARCHITECTURES.items()}
    architecture = machines.get(platform.machine(), "amd64")
    name = f"{registry.host} {reference} {expected}"
    pulled = runner.folder / "pulled" / hashlib.sha256(name.encode()).hexdigest()[:12]
    pulled.mkdir(parents=True)
    repository, _, tag = reference.partition(":")
    client.pull(registry, repository, tag, architecture=architecture, to=pulled)
    manifest = json.loads((pulled / "manifest.json").read_bytes())
    config = json.loads((pulled / _file(manifest["config"]["digest"])).read_bytes())
    root = pulled / "root"
    found = [_unpack(pulled / _file(layer["digest"]), root) for layer in manifest["layers"]]
    check(config["rootfs"]["diff_ids"] == found, f"the unpacked layers of {reference} match its config")
    if platform.machine() not in machines:
        return
    said = runner.run(
        [str(root / "usr" / "bin" / program), "--version"], shown=f"pulled/root/usr/bin/{program} --version"
    )
    first = said.decode().splitlines()[0]
    check(first.startswith(expected), f"the program from the copied image runs and prints {first!r}")


def _file(digest: str) -> str:
    """Return the name of the file to which `DemoClient.pull` writes a blob."""
    return digest.removeprefix("sha256:")


def _unpack(layer: Path, root: Path) -> str:
    """Write the files of a layer below `root`, and return the digest of the uncompressed tar."""
    unpacked = gzip.decompress(layer.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                path = root / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
                path.chmod(member.mode)
    return sha256(unpacked)


def list_requested(requests: Iterable[Seen], kind: str, status: int) -> list[str]:
    """Return the digest or tag of each request of a kind that got this status, in the order of the requests."""
    return [seen.reference for seen in requests if (seen.kind, seen.status) == (kind, status)]

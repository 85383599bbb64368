"""cosign signs images, and `verify-signatures` accepts its signatures. `make test-cosign` installs it.

The signatures in tests/signatures/cosign.json were made by this test with cosign 3.1.3. `MIRROR_TESTS_RECORD=FILE`
writes such a file.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.conftest import RegistryFactory
from tests.registries.real import RealRegistry
from tests.support.images import OCI_LAYER, Graph
from tests.support.oracle import assert_whole
from tests.support.seeding import push
from tests.support.tool import MirrorTool
from tests_real.installed import FOLDER, find_tool

# Formats of signatures, with the options of `cosign sign`.
FORMATS = {
    "tag": ("--new-bundle-format=false",),
    "bundle": ("--new-bundle-format=true",),
    "referrer": ("--new-bundle-format=false", "--registry-referrers-mode=oci-1-1"),
}
# A registry without TLS, and no services of Sigstore.
LOCAL = (
    "--allow-http-registry",
    "--allow-insecure-registry",
    "--tlog-upload=false",
    "--use-signing-config=false",
)
KINDS = ("p256", "p384", "p521", "rsa", "ed25519")


@pytest.fixture(scope="session")
def program() -> str:
    return find_tool("cosign", FOLDER, "test-cosign")


class Cosign:
    """Runs cosign in a folder, with a home of its own and without a transparency log."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self.folder = program, folder
        (folder / "home").mkdir(parents=True)

    def __call__(self, *arguments: str) -> str:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder / "home"), "COSIGN_PASSWORD": ""}
        environment |= {"COSIGN_EXPERIMENTAL": "1"}  # for `--registry-referrers-mode`
        environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}  # it needs only the registry
        run = subprocess.run(
            [self._program, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            env=environment,
            check=False,
        )
        assert 0 == run.returncode, f"cosign {' '.join(arguments)}: {run.stdout[-2000:]}{run.stderr[-2000:]}"
        return run.stdout + run.stderr

    def make_key(self, kind: str) -> None:
        """Make the files KIND.key and KIND.pub."""
        if kind == "p256":
            self("generate-key-pair", "--output-key-prefix", kind)
            return
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
        if kind == "rsa":
            key = rsa.generate_private_key(65537, 2048)
        elif kind == "ed25519":
            key = ed25519.Ed25519PrivateKey.generate()
        else:
            key = ec.generate_private_key(ec.SECP384R1() if kind == "p384" else ec.SECP521R1())
        file = self.folder / f"{kind}.pem"
        file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self("import-key-pair", "--key", str(file), "--output-key-prefix", kind)


@pytest.fixture
def cosign(program: str, tmp_path: Path) -> Cosign:
    return Cosign(program, tmp_path / "cosign")


def test_images_that_cosign_signed_are_copied_with_the_key_and_not_with_another(
    cosign: Cosign, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    source, target = registry_factory("source"), registry_factory("target")
    graph = Graph("cosign")
    names = [f"{kind}-{format}" for kind in KINDS for format in FORMATS]
    for name in names:
        graph.image(name, layers=[graph.blob(name.encode(), OCI_LAYER)])
    push(source, "app", graph)
    for kind in KINDS:
        cosign.make_key(kind)
        for format, options in FORMATS.items():
            image = f"{source.host}/app@{graph.tags[f'{kind}-{format}']}"
            cosign("sign", "--yes", "--key", f"{kind}.key", *LOCAL, *options, image)
    if record := os.environ.get("MIRROR_TESTS_RECORD"):
        _record(Path(record), source, {kind: (cosign.folder / f"{kind}.pub").read_text() for kind in KINDS})
    keys = {kind: {"keys": [str(cosign.folder / f"{kind}.pub")]} for kind in KINDS}
    mirror_run.config(
        [
            {
                "source": f"{source.host}/app",
                "targets": [f"{target.host}/{signed}-with-{kind}"],
                "tags": [f"{signed}-{format}" for format in FORMATS],
                "verify-signatures": keys[kind],
            }
            for signed in KINDS
            for kind in (signed, KINDS[KINDS.index(signed) - 1])
        ],
        source,
        target,
    )
    mirror_run.sync(expect=3)
    copied = [one for one, result in mirror_run.results().items() if result == "copied"]
    assert sorted(f"{target.host}/{name.partition('-')[0]}-with-{name.partition('-')[0]}:{name}" for name in names) == (
        sorted(copied)
    )
    assert_whole(target)


def test_a_signature_that_cosign_adds_on_the_target_is_kept(
    cosign: Cosign, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    """The image is signed at the source and by another team on the target. Both signatures have the same payload."""
    source, target = registry_factory("source"), registry_factory("target")
    graph = Graph("both")
    graph.image("v1")
    push(source, "app", graph)
    digest = graph.tags["v1"]
    for kind in ("p256", "rsa", "ed25519"):
        cosign.make_key(kind)

    def sign(registry: RealRegistry, kind: str) -> None:
        # The payload would otherwise contain the name of the registry.
        identity = ("--sign-container-identity", "example.com/app")
        image = f"{registry.host}/app@{digest}"
        cosign("sign", "--yes", "--key", f"{kind}.key", *LOCAL, *FORMATS["tag"], *identity, image)

    def verify(kind: str) -> None:
        options = ("--insecure-ignore-tlog=true", "--allow-http-registry", "--new-bundle-format=false")
        cosign("verify", "--key", f"{kind}.pub", *options, f"{target.host}/app@{digest}")

    sign(source, "p256")
    mirror = {"source": f"{source.host}/app:v1", "targets": [f"{target.host}/app"], "recheck": "0 s"}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    verify("p256")
    sign(target, "rsa")
    for arguments in ((), ("--deep",)):
        mirror_run.sync(*arguments)
        verify("p256")
        verify("rsa")
    assert 0 == mirror_run("verify", mirror_run.config_file).code
    sign(source, "ed25519")  # neither of the two repositories has all signatures of the other
    ran = mirror_run.sync(expect=3)
    assert "there is no record that mirror copied it" in ran.text
    verify("rsa")


def _record(file: Path, registry: RealRegistry, keys: dict[str, str]) -> None:
    """Write the content of the repository `app`, and the public keys."""
    with registry.client() as client:
        tags = {tag: client.manifest("app", tag) for tag in client.tags("app")}
        manifests, blobs = {}, {}
        pending = {answer.headers["docker-content-digest"]: answer for answer in tags.values()}
        while pending:
            digest, answer = pending.popitem()
            document = answer.json()
            manifests[digest] = {"type": answer.headers["content-type"], "body": answer.body.decode()}
            for child in document.get("manifests", []):
                pending[child["digest"]] = client.manifest("app", child["digest"])
            for blob in [*document.get("layers", []), *([document["config"]] if "config" in document else [])]:
                blobs[blob["digest"]] = base64.b64encode(client.blob("app", blob["digest"]).body).decode()
        content = {
            "keys": keys,
            "tags": {tag: answer.headers["docker-content-digest"] for tag, answer in tags.items()},
            "manifests": manifests,
            "blobs": list(blobs.values()),
        }
    file.write_text(json.dumps(content, indent=1))

"""The image that the Containerfile describes is built for two architectures, copied by `mirror`, unpacked and run.

The base images are made from packages of Debian, and come from a registry on loopback. Needs root."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror import __version__
from tests.registries.real import RealRegistry
from tests.support.oracle import assert_equal, assert_whole
from tests.support.seeding import seed
from tests.support.tool import ROOT, MirrorTool

pytestmark = pytest.mark.timeout(1800)

BASES = ROOT / ".registries" / "bases"  # `make test-image` makes it
USER = 65532
MACHINES = {"amd64": 62, "arm64": 183}  # in an ELF header
# Runs a program of the image in a mount namespace of its own: its root is read-only, but for the state directory.
RUN = """
set -eu
root=$1 state=$2 config=$3
shift 3
mkdir -p "$root/etc/mirror"  # as container runtimes do
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$state" "$root/var/lib/mirror"
mount --bind "$config" "$root/etc/mirror"
mount --options remount,bind,ro "$root/etc/mirror"
mount --options remount,bind,ro "$root"
exec chroot --userspec=65532:65532 --groups=65532 "$root" "$@"
"""


def run(*command: str | Path, timeout: float = 900, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False, **options
    )
    assert 0 == done.returncode, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done


def pip_settings() -> str:
    """Return the settings of pip for the build: those of the caller, but for directories of this machine."""
    listed = run(sys.executable, "-m", "pip", "config", "list").stdout
    found = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    return "\n".join(["[global]", *(f"{key} = {text}" for key, text in found.items() if key != "find-links")]) + "\n"


@dataclass(frozen=True, slots=True)
class Image:
    """The image in a registry, and unpacked for each architecture. layout: where buildah put it."""

    registry: RealRegistry
    layout: Path
    config: dict[str, Any]  # of the image for this machine
    roots: dict[str, Path]

    def run(self, state: Path, config: Path, *arguments: str, python: bool = False) -> subprocess.CompletedProcess[str]:
        """Run `mirror`, or Python, in the image for this machine, with its environment, as its user."""
        program = self.config["Entrypoint"][:1] if python else self.config["Entrypoint"]
        environment = dict(entry.split("=", 1) for entry in self.config["Env"])
        return run(
            *("unshare", "--mount", "--ipc", "--uts", "sh", "-c", RUN, "sh", self.roots[native()], state, config),
            *(*program, *arguments),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        )


def native() -> str:
    return run("dpkg", "--print-architecture").stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    assert 0 == os.getuid(), "this test needs root"
    assert BASES.exists(), f"{BASES} is missing: `make test-image` makes it"
    folder = tmp_path_factory.mktemp("image")
    with RealRegistry(folder, "registry") as registry, MirrorTool(folder / "mirror") as tool:
        tool.config([{"source": f"oci:{BASES}", "targets": [f"{registry.host}/{{repository}}"]}], registry)
        tool.sync(timeout=300)
        layout = build(folder, registry)
        mirror = {"source": f"oci:{layout}", "targets": [f"{registry.host}/tools/{{repository}}"]}
        tool.config([mirror], registry)
        tool.sync(timeout=300)
        roots = {architecture: unpack(folder, registry, architecture) for architecture in MACHINES}
        reference = f"docker://{registry.host}/tools/mirror:{__version__}"
        shown = run("skopeo", "inspect", "--tls-verify=false", "--config", reference)
        yield Image(registry, layout, json.loads(shown.stdout)["config"], roots)


def build(folder: Path, registry: RealRegistry) -> Path:
    """Build the Containerfile for both architectures. Return the layout with the image."""
    (folder / "pip.conf").write_text(pip_settings())
    buildah = ("buildah", "--storage-driver", "vfs", "--root", folder / "storage", "--runroot", folder / "run")
    run(
        *(*buildah, "build", "--quiet", "--isolation", "chroot", "--tls-verify=false"),
        "--platform",
        *(",".join(f"linux/{architecture}" for architecture in MACHINES), "--manifest", "mirror"),
        *("--build-arg", f"BUILDER={registry.host}/builder:bookworm"),
        *("--build-arg", f"RUNTIME={registry.host}/runtime:bookworm"),
        *("--build-arg", f"BUILDPLATFORM=linux/{native()}"),
        *("--secret", f"id=pip,src={folder / 'pip.conf'}", "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro", ROOT),
    )
    layout = folder / "layout"
    run(*buildah, "manifest", "push", "--quiet", "--all", "mirror", f"oci:{layout}:mirror:{__version__}")
    return layout


def unpack(folder: Path, registry: RealRegistry, architecture: str) -> Path:
    """Pull the image for an architecture with skopeo, and unpack it with umoci. Return its root directory."""
    reference = f"docker://{registry.host}/tools/mirror:{__version__}"
    pulled, bundle = folder / f"pulled-{architecture}", folder / f"bundle-{architecture}"
    platform = ("--override-os", "linux", "--override-arch", architecture)
    run("skopeo", "--insecure-policy", *platform, "copy", "--src-tls-verify=false", reference, f"oci:{pulled}:mirror")
    run("umoci", "unpack", "--image", f"{pulled}:mirror", bundle)
    return bundle / "rootfs"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A volume for the state, which belongs to the user of the image."""
    (made := tmp_path / "volume").mkdir()
    os.chown(made, USER, USER)
    return made


def test_the_registry_has_the_image_that_was_built_for_both_architectures(image: Image) -> None:
    (root,) = json.loads((image.layout / "index.json").read_text())["manifests"]
    assert root["digest"] == assert_whole(image.registry, ["tools/mirror"]).tags["tools/mirror", __version__]
    index = json.loads((image.layout / "blobs" / root["digest"].replace(":", "/")).read_text())
    platforms = {(one["platform"]["os"], one["platform"]["architecture"]) for one in index["manifests"]}
    assert {("linux", architecture) for architecture in MACHINES} == platforms


def test_the_image_has_labels_and_a_user_without_privileges(image: Image) -> None:
    assert f"{USER}:{USER}" == image.config["User"]
    labels = {key.removeprefix("org.opencontainers.image."): text for key, text in image.config["Labels"].items()}
    assert ("mirror", __version__, "Apache-2.0") == (labels["title"], labels["version"], labels["licenses"])


@pytest.mark.parametrize("architecture", MACHINES)
def test_the_image_has_no_shell_and_nothing_that_its_user_can_change(image: Image, architecture: str) -> None:
    root = image.roots[architecture]
    paths = [path for path in root.rglob("*") if not path.is_symlink()]
    programs = [path for path in paths if path.is_file() and "bin" in path.relative_to(root).parts]
    assert ["python3.11"] == sorted(path.name for path in programs)
    special = [path for path in paths if path.stat().st_mode & 0o6000 or (path.stat().st_mode & 0o1002) == 2]
    assert [] == special
    assert [root / "var/lib/mirror"] == [path for path in paths if USER in (path.stat().st_uid, path.stat().st_gid)]


@pytest.mark.parametrize("architecture", MACHINES)
def test_every_binary_in_the_image_is_for_its_architecture(image: Image, architecture: str) -> None:
    files = [path for path in image.roots[architecture].rglob("*") if path.is_file() and not path.is_symlink()]
    heads = [path.read_bytes()[:20] for path in files]
    machines = [struct.unpack("<H", head[18:20])[0] for head in heads if head.startswith(b"\x7fELF")]
    assert len(machines) > 50
    assert {MACHINES[architecture]} == set(machines)


def test_the_program_runs_without_a_writable_root(image: Image, state: Path, tmp_path: Path) -> None:
    assert f"mirror {__version__}\n" == image.run(state, tmp_path, "--version").stdout
    check = "import boto3, cryptography, nacl, os, re2, rich, socks, sqlite3, zoneinfo; zoneinfo.ZoneInfo('Asia/Tokyo')"
    check += "; print(os.getuid(), os.getgid(), os.getgroups(), os.statvfs('/').f_flag & os.ST_RDONLY, mirror.__file__)"
    shown = image.run(state, tmp_path, "-c", f"import mirror; {check}", python=True).stdout
    assert f"{USER} {USER} [{USER}] 1 /opt/mirror/mirror/__init__.py\n" == shown


def test_the_image_trusts_the_public_certificate_authorities(image: Image, state: Path, tmp_path: Path) -> None:
    check = "from mirror.registry.http.tls import _load_system_ca; import ssl"
    check += "; context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); _load_system_ca(context)"
    shown = image.run(state, tmp_path, "-c", f"{check}; print(len(context.get_ca_certs()))", python=True).stdout
    assert int(shown) > 100


def test_the_image_syncs_two_registries(
    image: Image, state: Path, source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    seed(source, "team/app", images=3)
    (folder := tmp_path / "config").mkdir()
    mirror = {"source": f"{source.host}/team/app", "targets": [f"{target.host}/team/app"]}
    config = mirror_run.config([mirror], source, target, file=folder / "mirror.yaml")
    # Without `state`, the state directory is a folder of the volume.
    config.write_text(re.sub(r"^state: .*\n", "", config.read_text(), flags=re.MULTILINE))
    image.run(state, folder, "sync", "/etc/mirror/mirror.yaml")
    assert_equal(source, "team/app", target)
    (written,) = state.iterdir()
    assert json.loads((written / "report.json").read_text())["exit"] == 0
    assert {(USER, USER)} == {(path.stat().st_uid, path.stat().st_gid) for path in written.rglob("*")}
    image.run(state, folder, "verify", "/etc/mirror/mirror.yaml")

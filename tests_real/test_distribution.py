"""The files of a release, which `make dist` builds, can be installed, and agree with each other."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from mirror import __version__
from tests.registries.real import RealRegistry
from tests.support.oracle import assert_equal
from tests.support.seeding import seed
from tests.support.tool import ROOT, MirrorTool
from tools.generated_files import generate_files

DIST = ROOT / "dist"
WHEEL = DIST / f"mirror-{__version__}-py3-none-any.whl"
SOURCE = DIST / f"mirror-{__version__}.tar.gz"
REQUIREMENTS = ROOT / "requirements.txt"


def environment(home: Path) -> dict[str, str]:
    """Return the caller's environment, which may configure pip, without what could lead Python to this source tree."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"HOME": str(home)}


def run(*command: str | Path, home: Path, expect: int = 0) -> str:
    """Run a command in an empty directory. Return its output and its messages."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert expect == done.returncode, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory `bin` of a new environment into which the wheel was installed as docs/installation.md describes."""
    assert WHEEL.exists(), f"{WHEEL} is missing: `make dist` builds it"
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    pip = folder / "venv" / "bin" / "pip"
    run(pip, "install", "--quiet", "--require-hashes", "-r", DIST / "requirements.txt", home=folder)
    run(pip, "install", "--quiet", "--no-deps", WHEEL, home=folder)
    return pip.parent


def test_the_installed_program_syncs_two_registries(
    installed: Path, source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    (home := tmp_path / "elsewhere").mkdir()
    assert f"mirror {__version__}\n" == run(installed / "mirror", "--version", home=home)
    where = run(installed / "python", "-c", "import mirror; print(mirror.__file__)", home=home)
    assert Path(where.strip()).is_relative_to(installed.parent)
    seed(source, "team/app", images=2)
    mirrors = [{"source": f"{source.host}/team/app", "targets": [f"{target.host}/team/app"]}]
    config = mirror_run.config(mirrors, source, target)
    run(installed / "mirror", "sync", config, home=home)
    assert_equal(source, "team/app", target)
    run(installed / "python", "-m", "mirror", "plan", "--exit-code", config, home=home)
    assert "version" in json.loads(run(installed / "mirror", "schema", home=home))["properties"]


def test_the_installation_has_consistent_dependencies_and_the_generated_files(installed: Path, tmp_path: Path) -> None:
    run(installed / "pip", "check", home=tmp_path)
    texts = {name: (installed.parent / name).read_text() for name in generate_files()}
    different = [name for name, text in generate_files().items() if _undated(text) != _undated(texts[name])]
    assert [] == different


def _undated(text: str) -> str:
    """Return a text without the date in the heading of the manual page."""
    return re.sub(r"^\.TH .*$", "", text, flags=re.MULTILINE)


def test_pip_refuses_a_dependency_with_another_hash(installed: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^six==\S+", REQUIREMENTS.read_text(), re.MULTILINE)
    (tmp_path / "requirements.txt").write_text(f"{line} --hash=sha256:{'0' * 64}\n")
    command = (installed / "pip", "download", "--no-deps", "--no-cache-dir", "--require-hashes", "-r")
    assert "DO NOT MATCH THE HASHES" in run(*command, "requirements.txt", home=tmp_path, expect=1)


def test_the_packages_have_every_file_of_the_source_tree() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    tracked = set(listed.stdout.splitlines()) - {".gitignore"}
    with tarfile.open(SOURCE) as archive:
        top = f"mirror-{__version__}/"
        packed = {member.name.removeprefix(top) for member in archive if member.isfile()}
    assert set() == tracked - packed
    with zipfile.ZipFile(WHEEL) as wheel:
        assert {name for name in tracked if name.startswith("mirror/")} == {
            name for name in wheel.namelist() if name.startswith("mirror/")
        }


def test_a_wheel_that_is_built_from_the_source_distribution_has_the_same_bytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        built = max(info.date_time for info in wheel.infolist())
    seconds = int(datetime(*built, tzinfo=UTC).timestamp())
    build = ["env", f"SOURCE_DATE_EPOCH={seconds}", sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    run(*build, SOURCE, home=tmp_path)
    assert WHEEL.read_bytes() == (tmp_path / WHEEL.name).read_bytes()


def test_the_hashes_the_sbom_and_the_licenses_cover_the_release(installed: Path, tmp_path: Path) -> None:
    lines = (DIST / "SHA256SUMS").read_text().splitlines()
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DIST.iterdir()}
    del files["SHA256SUMS"]
    assert files == {name: digest for digest, name in (line.split("  ") for line in lines)}

    listed = json.loads(run(installed / "pip", "list", "--format", "json", home=tmp_path).splitlines()[0])
    packages = {_key(one["name"]): one["version"] for one in listed if one["name"] not in ("pip", "setuptools")}
    assert __version__ == packages.pop("mirror")
    sbom = json.loads((DIST / f"mirror-{__version__}.cdx.json").read_text())
    product = sbom["metadata"]["component"]
    assert ("mirror", __version__) == (product["name"], product["version"])
    assert packages == {_key(one["name"]): one["version"] for one in sbom["components"]}
    assert str(ROOT) not in json.dumps(sbom)
    licenses = (DIST / "THIRD-PARTY-LICENSES").read_text().splitlines()
    assert [] == [
        f"{name} {version}"
        for name, version in packages.items()
        if version not in [after for before, after in pairwise(licenses) if _key(before) == name]
    ]


def _key(name: str) -> str:
    """Return the normalized name of a Python package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_requirements_name_no_index() -> None:
    assert [] == re.findall(r"^ *--(?!hash=).*|.*://.*", REQUIREMENTS.read_text(), re.MULTILINE)

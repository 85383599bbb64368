"""The demonstration: static programs only, layouts that other tools can read, and a run without installed programs."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from demo.checks import CheckFailed
from demo.images import Layout, base_layer, program_layer
from demo.programs import ARCHITECTURES, Program, check_static
from demo.registries import ServeRegistry
from demo.steps import CommandRunner
from demo.story import run_demonstration
from tests.registries.client import sha256

AMD64, ARM64 = 62, 183  # machine numbers in an ELF header
LOAD, INTERPRETER = 1, 3  # kinds of segments


def elf(*segments: int, machine: int = AMD64) -> bytes:
    """Return an ELF header and a segment table."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    return header + b"".join(struct.pack("<I", kind).ljust(56, b"\0") for kind in segments)


def make_program(binary: bytes, architecture: str = "amd64") -> Program:
    return Program("tool", "1.0", architecture, binary, (("LICENCE", b"free"),))


def test_a_static_program_of_its_architecture_is_accepted() -> None:
    for architecture, machine in (("amd64", AMD64), ("arm64", ARM64)):
        taken = make_program(elf(LOAD, machine=machine), architecture)
        assert taken == check_static(taken)


@pytest.mark.parametrize(
    ("binary", "says"),
    [
        (elf(LOAD, INTERPRETER), "not a static program"),
        (elf(LOAD, machine=ARM64), "not a static program of that architecture"),
        (b"#!/bin/sh\n".ljust(200), "not a 64-bit little-endian ELF file"),
    ],
)
def test_any_other_program_is_rejected(binary: bytes, says: str) -> None:
    with pytest.raises(CheckFailed, match=says):
        check_static(make_program(binary))


def test_the_same_files_give_the_same_layer() -> None:
    tool = make_program(elf(LOAD))
    assert (base_layer(), program_layer(tool)) == (base_layer(), program_layer(tool))


def test_skopeo_reads_the_layout_and_a_moved_tag(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layers = [base_layer(), program_layer(make_program(elf(LOAD)))]
    indexes = [
        layout.add_index(
            layout.add_image(arch, layers, entrypoint="/usr/bin/tool", version=version) for arch in ("amd64", "arm64")
        )
        for version in ("1.0", "1.1")
    ]
    for index in indexes:
        layout.tag("latest", index)
    command = ["skopeo", "--insecure-policy", "inspect", "--raw", f"oci:{layout.root}:latest"]
    read = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    assert indexes[1]["digest"] == sha256(read)


def scripts(release: str) -> list[Program]:
    """Return scripts that print the versions of the real programs, and so run on every machine."""
    says = {"first": {"shfmt": "v3.14.0", "rg": "ripgrep 15.2.0"}, "second": {"shfmt": "v3.14.1"}}[release]
    return [
        Program(name, "1", architecture, f"#!/bin/sh\necho '{text}' # {architecture}\n".encode(), ())
        for architecture in ARCHITECTURES
        for name, text in says.items()
    ]


def test_the_demonstration_runs_without_programs_of_the_system(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demonstration(tmp_path, scripts, skopeo=False, docker_registry=False)
    told = capsys.readouterr().out
    assert "$ skopeo copy" not in told
    assert "target: docker-registry at" not in told
    assert "each of the 9 blobs was read from the source once" in told


def test_the_demonstration_ends_if_a_server_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("a file is no layout")
    with (
        pytest.raises(CheckFailed, match="directory"),
        ServeRegistry(tmp_path, "source", CommandRunner(tmp_path).environment),
    ):
        pass

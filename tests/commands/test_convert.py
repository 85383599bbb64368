"""`mirror convert`: which existing files it replaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.tool import MirrorTool

PEER = "sync:\n- {source: a/b, target: h.example.com/b, type: repository}\n"


def peer_file(tool: MirrorTool, name: str = "regsync.yml") -> Path:
    path = tool.folder / name
    path.write_text(PEER)
    return path


@pytest.mark.parametrize("name", ["regsync.yml", f"a {'long ' * 40}name.yml"])
def test_a_file_that_it_made_is_replaced_also_through_a_link(name: str, mirror_run: MirrorTool) -> None:
    peer, config, link = peer_file(mirror_run, name), mirror_run.folder / "mirror.yaml", mirror_run.folder / "link"
    link.symlink_to(config)
    config.write_text("")
    for path in (config, config, link):
        ran = mirror_run("convert", "--from", "regsync", peer, "-o", path)
        assert (0, True) == (ran.code, "1 mirror written" in ran.out), ran
        assert "docker.io/a/b" in config.read_text()
        config.write_text(config.read_text() + "# edited\n")
    assert link.is_symlink()


@pytest.mark.parametrize(
    "text",
    ["version: 1\n", "# Converted from hand\nversion: 1\n", "# Converted from x, by mirror 1\n", "\xff\x00", " "],
)
def test_no_other_file_is_replaced(text: str, mirror_run: MirrorTool) -> None:
    peer, config = peer_file(mirror_run), mirror_run.folder / "mirror.yaml"
    config.write_bytes(text.encode("latin-1"))
    ran = mirror_run("convert", "--from", "regsync", peer, "-o", config)
    said = (
        f"{config} exists, and was not written by `mirror convert` (choose another file with `-o FILE`, or delete it)"
    )
    assert (2, "") == (ran.code, ran.out)
    assert said in ran.err
    assert text.encode("latin-1") == config.read_bytes()


def test_the_file_to_convert_is_not_replaced(mirror_run: MirrorTool) -> None:
    peer = peer_file(mirror_run)
    ran = mirror_run("convert", "--from", "regsync", peer, "-o", peer)
    assert (2, PEER) == (ran.code, peer.read_text())
    assert "would replace" in ran.err


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_not_a_regular_file_is_not_replaced(kind: str, mirror_run: MirrorTool) -> None:
    peer, path = peer_file(mirror_run), mirror_run.folder / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    ran = mirror_run("convert", "--from", "regsync", peer, "-o", path)
    assert (4, True) == (ran.code, f"cannot write {path}: it is not a regular file" in ran.err), ran
    assert not path.is_file()

"""Hooks of MkDocs: add the files outside docs/ to which the pages link, and adjust these links.

In the repository, the pages link to files such as ../configs/prod.yaml. In the site, these files are in the same
directory as the pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "SECURITY.md": "SECURITY.md"}
PAGES |= {"CHANGELOG.md": "CHANGELOG.md"}
OTHER_FILES = ("LICENSE", ".ci/run", "Containerfile", "mirror/*.schema.json", "configs/*.yaml", "contrib/**/*")
_LINK = re.compile(r"(?<=\]\()(\.\./|docs/)?(?!https?:|#)([^)\s]+)(?=\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages and other files from outside docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for pattern in OTHER_FILES:
        for path in sorted(path for path in ROOT.glob(pattern) if path.is_file()):
            files.append(File.generated(config, _site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the links of a page by those that are valid in the site."""
    return _LINK.sub(lambda link: _replace_link(link[2]), markdown)


def _replace_link(target: str) -> str:
    """Return a link in the site. target: a path in the repository, without `docs/`, with or without a fragment."""
    path, mark, fragment = target.partition("#")
    if path.rstrip("/") == "configs":
        path = "configs/prod.yaml"
    elif path.startswith("."):
        path = path.lstrip(".")
    return PAGES.get(path, path) + mark + fragment


def _site_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().lstrip(".")

"""The tools that are compared: where they are found, which version they are, and how they are told to do a job.

Each gets four images at a time where it can be told so, which is what `mirror` does by default, and no other tuning. A
tool that copies only one image or one repository at a time is called once for each, one after the other, as a shell
script would do it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.job import Job

ROOT = Path(__file__).resolve().parent.parent
PLACES = (ROOT / ".bench" / "bin", Path.home() / "go" / "bin")  # where `make bench-tools` and `go install` put programs
AT_ONCE = 4  # images
_VERSION = re.compile(r"v?\d+\.\d+\.\d+[\w.+-]*")


def find(program: str) -> str | None:
    """A program on PATH, or where Go installs them. -> its path"""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, PLACES)])
    return shutil.which(program, path=path)


class Tool(ABC):
    """name: of the tool and of its program. asks_version: what makes the program say its version."""

    name: str
    asks_version: Sequence[str] = ("version",)

    @abstractmethod
    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        """The command lines for a job, to be run in `folder`, which is this tool's own and stays as it was left."""

    def program(self) -> str | None:
        """Where it is; None: not installed."""
        return find(self.name)

    def forget(self, folder: Path) -> None:
        """Remove what earlier runs have learned. Most tools learn nothing."""
        return

    def version(self) -> str:
        said = subprocess.run(
            [self.program() or self.name, *self.asks_version], capture_output=True, text=True, timeout=30, check=True
        )
        found = _VERSION.search(said.stdout + said.stderr)
        return found[0] if found else "unknown"


def environment(folder: Path) -> Mapping[str, str]:
    """What every tool runs in: a HOME of its own, nothing else but PATH and the places of this project."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "PYTHONPATH": str(ROOT)}


class Mirror(Tool):
    name = "mirror"
    asks_version = ("-m", "mirror", "--version")

    def program(self) -> str:
        return sys.executable

    def forget(self, folder: Path) -> None:
        shutil.rmtree(folder / "state", ignore_errors=True)

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        tags = {"tags": {"include": [job.pattern]}} if job.pattern else {}
        config = {
            "version": 1,
            "state": str(folder / "state"),
            "registries": {host: {"plain-http": True} for host in (job.source, *job.targets)},
            "mirrors": [
                {
                    "source": f"{job.source}/{repository}",
                    "targets": [f"{target}/{repository}" for target in job.targets],
                    **tags,
                }
                for repository in job.images
            ],
        }
        return [[sys.executable, "-m", "mirror", "sync", _written(folder / "mirror.yaml", config)]]


class Regsync(Tool):
    name = "regsync"

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        tags = {"tags": {"allow": [job.pattern]}} if job.pattern else {}
        config = {
            "version": 1,
            "creds": [{"registry": host, "tls": "disabled"} for host in (job.source, *job.targets)],
            "defaults": {"parallel": AT_ONCE},
            "sync": [
                {
                    "source": f"{job.source}/{repository}",
                    "target": f"{target}/{repository}",
                    "type": "repository",
                    **tags,
                }
                for repository in job.images
                for target in job.targets
            ],
        }
        return [[self.program() or self.name, "once", "--config", _written(folder / "regsync.yaml", config)]]


class Skopeo(Tool):
    name = "skopeo"
    asks_version = ("--version",)

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        """`skopeo sync` names what it writes after the last part of a repository: one call for each parent folder."""
        groups: dict[str, list[str]] = {}
        for repository in job.images:
            groups.setdefault(repository.rpartition("/")[0], []).append(repository)
        made = []
        for number, (parent, repositories) in enumerate(sorted(groups.items())):
            key = "images-by-tag-regex" if job.pattern else "images"
            every: str | list[str] = job.pattern or []  # an empty list is every tag
            wanted = dict.fromkeys(repositories, every)
            config = {job.source: {key: wanted, "tls-verify": False}}
            listed = _written(folder / f"skopeo-{number}.yaml", config)
            for target in job.targets:
                options = ["--all", "--src", "yaml", "--dest", "docker", "--dest-tls-verify=false"]
                where = f"{target}/{parent}" if parent else target
                made.append([self.program() or self.name, "--insecure-policy", "sync", *options, listed, where])
        return made


class Crane(Tool):
    name = "crane"

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        crane = [self.program() or self.name, "--insecure"]
        made = []
        for repository, tags in job.images.items():
            source = f"{job.source}/{repository}"
            for target in (f"{target}/{repository}" for target in job.targets):
                if not job.pattern:
                    made.append([*crane, "copy", "--all-tags", "--jobs", str(AT_ONCE), source, target])
                    continue
                made.append([*crane, "ls", source])
                made += [[*crane, "copy", f"{source}:{tag}", f"{target}:{tag}"] for tag in tags]
        return made


class Oras(Tool):
    """Copies one image a call; somebody lists the tags first."""

    name = "oras"

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        oras = self.program() or self.name
        options = ["--from-plain-http", "--to-plain-http", "--no-tty", "--concurrency", str(AT_ONCE)]
        made = []
        for repository, tags in job.images.items():
            source = f"{job.source}/{repository}"
            for target in job.targets:
                made.append([oras, "repo", "tags", "--plain-http", source])
                made += [[oras, "copy", *options, f"{source}:{tag}", f"{target}/{repository}:{tag}"] for tag in tags]
        return made


TOOLS: tuple[Tool, ...] = (Mirror(), Regsync(), Crane(), Skopeo(), Oras())


def _written(path: Path, config: object) -> str:
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML
    return str(path)

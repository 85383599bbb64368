"""The compared tools: their programs, versions and command lines.

If the number of parallel copies of a tool can be set, it is set to four images, the default of `mirror`. Nothing else
is tuned. A tool that copies only one image or repository per call is called once for each image or repository, one
after another, as in a shell script.
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
PROGRAM_FOLDERS = (
    ROOT / ".bench" / "bin",
    Path.home() / "go" / "bin",
)  # where `make bench-tools` and `go install` put programs
PARALLEL_IMAGES = 4
_VERSION = re.compile(r"v?\d+\.\d+\.\d+[\w.+-]*")


def find(program: str) -> str | None:
    """Return the path of a program from PATH or PROGRAM_FOLDERS; None if the program is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, PROGRAM_FOLDERS)])
    return shutil.which(program, path=path)


class Tool(ABC):
    """A tool that copies images between registries.

    name: the name of the tool and of its program. version_arguments: the arguments that print the version."""

    name: str
    version_arguments: Sequence[str] = ("version",)

    @abstractmethod
    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        """Return the command lines that do a job, to be run in `folder`.

        No other tool uses this folder, and its files are kept between runs."""

    def program(self) -> str | None:
        """Return the path of the program; None if it is not installed."""
        return find(self.name)

    def remove_state(self, folder: Path) -> None:
        """Remove the state that earlier runs of the tool have stored in `folder`. Most tools store no state."""
        return

    def version(self) -> str:
        """Return the version that the program prints; "unknown" if the output contains no version."""
        printed = subprocess.run(
            [self.program() or self.name, *self.version_arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        found = _VERSION.search(printed.stdout + printed.stderr)
        return found[0] if found else "unknown"


def environment(folder: Path) -> Mapping[str, str]:
    """Return the environment variables for a tool.

    HOME is the folder of the tool, PATH is unchanged, and PYTHONPATH is the root of this project."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "PYTHONPATH": str(ROOT)}


class Mirror(Tool):
    name = "mirror"
    version_arguments = ("-m", "mirror", "--version")

    def program(self) -> str:
        return sys.executable

    def remove_state(self, folder: Path) -> None:
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
        return [[sys.executable, "-m", "mirror", "sync", _write_config(folder / "mirror.yaml", config)]]


class Regsync(Tool):
    name = "regsync"

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        tags = {"tags": {"allow": [job.pattern]}} if job.pattern else {}
        config = {
            "version": 1,
            "creds": [{"registry": host, "tls": "disabled"} for host in (job.source, *job.targets)],
            "defaults": {"parallel": PARALLEL_IMAGES},
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
        return [[self.program() or self.name, "once", "--config", _write_config(folder / "regsync.yaml", config)]]


class Skopeo(Tool):
    name = "skopeo"
    version_arguments = ("--version",)

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        """Return one call for each target and each parent path of the repositories.

        `skopeo sync` uses only the last component of the source repository as the target repository."""
        groups: dict[str, list[str]] = {}
        for repository in job.images:
            groups.setdefault(repository.rpartition("/")[0], []).append(repository)
        made = []
        for number, (parent, repositories) in enumerate(sorted(groups.items())):
            key = "images-by-tag-regex" if job.pattern else "images"
            every: str | list[str] = job.pattern or []  # an empty list selects every tag
            wanted = dict.fromkeys(repositories, every)
            config = {job.source: {key: wanted, "tls-verify": False}}
            listed = _write_config(folder / f"skopeo-{number}.yaml", config)
            for target in job.targets:
                options = ["--all", "--src", "yaml", "--dest", "docker", "--dest-tls-verify=false"]
                destination = f"{target}/{parent}" if parent else target
                made.append([self.program() or self.name, "--insecure-policy", "sync", *options, listed, destination])
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
                    made.append([*crane, "copy", "--all-tags", "--jobs", str(PARALLEL_IMAGES), source, target])
                    continue
                made.append([*crane, "ls", source])
                made += [[*crane, "copy", f"{source}:{tag}", f"{target}:{tag}"] for tag in tags]
        return made


class Oras(Tool):
    """The tool `oras`. One call lists the tags of a repository, and one more call copies each image."""

    name = "oras"

    def commands(self, job: Job, folder: Path) -> list[list[str]]:
        oras = self.program() or self.name
        options = ["--from-plain-http", "--to-plain-http", "--no-tty", "--concurrency", str(PARALLEL_IMAGES)]
        made = []
        for repository, tags in job.images.items():
            source = f"{job.source}/{repository}"
            for target in job.targets:
                made.append([oras, "repo", "tags", "--plain-http", source])
                made += [[oras, "copy", *options, f"{source}:{tag}", f"{target}/{repository}:{tag}"] for tag in tags]
        return made


TOOLS: tuple[Tool, ...] = (Mirror(), Regsync(), Crane(), Skopeo(), Oras())


def _write_config(path: Path, config: object) -> str:
    """Write a configuration file, and return its path."""
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")  # every JSON document is also YAML
    return str(path)

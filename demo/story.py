"""The demonstration: starts registries, pushes images, runs three syncs, and checks the results.

The checks do not use code of `mirror`. They read images with skopeo if it is installed, otherwise with a client from
the tests. They also examine the requests that the registries received, which are recorded in access logs or by a proxy
in front of each registry. A failed check raises CheckFailed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from demo.checks import check
from demo.clients import DemoClient, PlainClient, SkopeoClient
from demo.images import Json, Layout, base_layer, program_layer
from demo.programs import ARCHITECTURES, Program
from demo.registries import RecordingRegistry, ServeRegistry
from demo.steps import CommandRunner, compare, list_requested, run_from_image
from tests.registries.real import RealRegistry

SHFMT, TOOLBOX = "tools/shfmt", "tools/toolbox"

Programs = Callable[[str], list[Program]]  # returns the programs of a release, "first" or "second"


@dataclass(frozen=True, slots=True)
class Stage:
    """The registries, tools and programs of the demonstration."""

    runner: CommandRunner
    client: DemoClient
    source: RecordingRegistry
    targets: Sequence[RecordingRegistry]
    programs: Programs

    def mark(self) -> None:
        """Discard the requests that all registries have recorded so far."""
        for registry in (self.source, *self.targets):
            registry.mark()


def run_demonstration(folder: Path, programs: Programs, *, skopeo: bool, docker_registry: bool) -> None:
    """Run the demonstration.

    folder: an empty folder. programs: returns the programs of a release. skopeo, docker_registry: whether to use these
    tools. Raises CheckFailed, and RuntimeError if docker-registry does not start."""
    runner = CommandRunner(folder)
    client: DemoClient = SkopeoClient(runner.run) if skopeo else PlainClient()
    with ExitStack() as stack:
        heading("1. Registries")
        source = stack.enter_context(ServeRegistry(folder, "source", runner.environment))
        print(f"  source: `mirror serve --writable` at {source.host}, empty")
        targets: list[RecordingRegistry] = [stack.enter_context(ServeRegistry(folder, "target", runner.environment))]
        print(f"  target: `mirror serve --writable` at {targets[0].host}, empty")
        if docker_registry:
            targets.append(stack.enter_context(RealRegistry(folder, "second-target")))
            print(f"  target: docker-registry at {targets[1].host}, empty")
        else:
            print("  (if docker-registry is installed, it is a second target)")
        stage = Stage(runner, client, source, targets, programs)
        (folder / "demo.yaml").write_text(configuration(stage))
        first = first_sync(stage)
        unchanged_sync(stage, first)
        release_sync(stage, first)


def configuration(stage: Stage) -> str:
    """Return the configuration of `mirror` that copies both repositories to all targets."""
    lines = ["version: 1", "state: state", "registries:"]
    lines += [f"  {registry.host}: {{plain-http: true}}" for registry in (stage.source, *stage.targets)]
    lines += ["mirrors:"]
    for name in ("shfmt", "toolbox"):
        lines += [f"  - source: {stage.source.host}/tools/{name}"]
        lines += [f"    targets: [{', '.join(f'{target.host}/copies/{name}' for target in stage.targets)}]"]
    return "\n".join(lines) + "\n"


def first_sync(stage: Stage) -> dict[str, str]:
    """Push the first release, sync it, and check the copies. Return the digests of its images by `repository:tag`."""
    runner, targets = stage.runner, stage.targets
    heading(f"2. Images for two architectures, pushed with {stage.client.name}")
    first = first_release(stage)

    heading("3. The first sync")
    stage.mark()
    print("".join(f"    {line}\n" for line in (runner.folder / "demo.yaml").read_text().splitlines()), end="")
    runner.sync(copied=len(first) * len(targets), up_to_date=0)
    blobs = runner.blobs()
    check(
        sorted(list_requested(stage.source.requests(), "GET blob", 200)) == sorted(blobs),
        f"each of the {len(blobs)} blobs was read from the source once",
    )
    for target in targets:
        written = target.requests()
        check(
            sorted(list_requested(written, "PUT upload", 201)) == sorted(blobs),
            f"each blob was uploaded to {target.host} once",
        )
        check(
            len(list_requested(written, "POST mount", 201)) == 3,
            "the 3 layers that both repositories use were mounted into the second one, not uploaded",
        )

    heading("4. Compare the images")
    for target in targets:
        compare(stage.client, stage.source, target, first)
        run_from_image(runner, stage.client, target, "copies/shfmt:latest", "shfmt", expected="v3.14.0")
        run_from_image(runner, stage.client, target, "copies/toolbox:1.0", "rg", expected="ripgrep 15.2.0")
    return first


def unchanged_sync(stage: Stage, first: dict[str, str]) -> None:
    """Sync again without changes, and check that nothing is written. first: the result of `first_sync`."""
    heading("5. The second sync: nothing has changed")
    stage.mark()
    stage.runner.sync(copied=0, up_to_date=len(first) * len(stage.targets))
    read = stage.source.requests()
    for target in stage.targets:
        check(not target.writes(), f"{target.host} received no POST, PUT, PATCH or DELETE")
    check(not [seen for seen in read if seen.kind == "GET blob"], "no blob was read")
    check(
        not [seen for seen in read if seen.kind == "GET manifest"], "no manifest was read, only HEAD requests were sent"
    )


def release_sync(stage: Stage, first: dict[str, str]) -> None:
    """Push the second release, sync it, and check that only new content is copied. first: as in `unchanged_sync`."""
    runner, targets = stage.runner, stage.targets
    heading("6. The third sync: a new tag 4.2.0, and `latest` moves to it")
    blobs = runner.blobs()
    moved = second_release(stage)
    stage.mark()
    runner.sync(copied=len(moved) * len(targets), up_to_date=(len(first) + 1 - len(moved)) * len(targets))
    new = runner.blobs() - blobs
    check(
        sorted(list_requested(stage.source.requests(), "GET blob", 200)) == sorted(new),
        f"only the {len(new)} new blobs were read",
    )
    for target in targets:
        written = target.requests()
        check(
            sorted(list_requested(written, "PUT upload", 201)) == sorted(new),
            f"only these blobs were uploaded to {target.host}",
        )
        tags = {name for name in list_requested(written, "PUT manifest", 201) if ":" not in name}
        check(tags == {"4.2.0", "latest"}, "only the tags `4.2.0` and `latest` were written")
        compare(stage.client, stage.source, target, first | moved)
        run_from_image(runner, stage.client, target, "copies/shfmt:latest", "shfmt", expected="v3.14.1")


def first_release(stage: Stage) -> dict[str, str]:
    """Build and push the images of the first release. Return their digests by `repository:tag`."""
    found = {(program.name, program.architecture): program for program in stage.programs("first")}
    for program in found.values():
        size = len(program.binary) / 2**20
        print(
            f"  {program.name} for {program.architecture}: static, {size:.1f} MiB, from wheel version {program.version}"
        )
    base = base_layer()
    layers = {key: program_layer(program) for key, program in found.items()}

    shfmt = stage.runner.layout(SHFMT)
    images = {
        arch: shfmt.add_image(arch, [base, layers["shfmt", arch]], entrypoint="/usr/bin/shfmt", version="4.1.0")
        for arch in ARCHITECTURES
    }
    index = shfmt.add_index(images.values())
    pushed = _push(stage, SHFMT, shfmt, dict.fromkeys(("4.1.0", "4.1", "stable", "latest"), index))
    single = shfmt.add_image(
        "amd64", [base, layers["shfmt", "amd64"]], entrypoint="/usr/bin/shfmt", version="4.1.0-amd64"
    )
    pushed |= _push(stage, SHFMT, shfmt, {"4.1.0-amd64": single})

    toolbox = stage.runner.layout(TOOLBOX)
    index = toolbox.add_index(
        toolbox.add_image(
            arch, [base, layers["shfmt", arch], layers["rg", arch]], entrypoint="/usr/bin/rg", version="1.0"
        )
        for arch in ARCHITECTURES
    )
    return pushed | _push(stage, TOOLBOX, toolbox, {"1.0": index, "latest": index})


def second_release(stage: Stage) -> dict[str, str]:
    """Build and push the images of the second release. Return their digests by `repository:tag`."""
    layout, base = stage.runner.layout(SHFMT), base_layer()
    found = stage.programs("second")
    index = layout.add_index(
        layout.add_image(
            program.architecture, [base, program_layer(program)], entrypoint="/usr/bin/shfmt", version="4.2.0"
        )
        for program in sorted(found, key=lambda program: program.architecture)
    )
    return _push(stage, SHFMT, layout, {"4.2.0": index, "latest": index})


def _push(stage: Stage, repository: str, layout: Layout, roots: dict[str, Json]) -> dict[str, str]:
    """Push images to the source. roots: descriptors by tag. Return the digests by `repository:tag`."""
    for tag, root in roots.items():
        layout.tag(tag, root)
        stage.client.push(layout, tag, stage.source, repository)
    return {f"{repository}:{tag}": str(root["digest"]) for tag, root in roots.items()}


def heading(text: str) -> None:
    """Print a heading, in bold on a terminal."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)

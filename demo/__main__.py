"""The story that `make demo` tells. Every claim is checked; the first that does not hold ends it with exit code 1.

The witnesses are not ours: skopeo pushes, inspects and pulls, and the registries' own access logs say what was asked.
"""

from __future__ import annotations

import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from demo.checks import Wrong, check
from demo.images import Json, Layout, base_layer, program_layer
from demo.programs import ARCHITECTURES, Program, programs
from demo.steps import Desk, asked_for, run_from_image
from tests.registries.real import RealRegistry

CACHE = Path(".demo")
SHFMT, TOOLBOX = "tools/shfmt", "tools/toolbox"
CONFIG = """\
version: 1
state: state
registries:
  {source}: {{plain-http: true}}
  {target}: {{plain-http: true}}
mirrors:
  - source: {source}/tools/shfmt
    targets: [{target}/copies/shfmt]
  - source: {source}/tools/toolbox
    targets: [{target}/copies/toolbox]
"""


def main() -> int:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="mirror-demo-") as folder:
            tell(Path(folder))
    except (Wrong, RuntimeError) as wrong:  # RuntimeError: a registry does not start
        print(f"\nThe demonstration FAILED: {wrong}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; registries ended, temporary files removed.", file=sys.stderr)
        return 130
    print(f"\nEverything held, in {time.monotonic() - began:.0f} s. Registries ended, temporary files removed.")
    return 0


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def tell(folder: Path) -> None:
    heading("1. Two registries")
    with RealRegistry(folder, "source") as source, RealRegistry(folder, "target") as target:
        print(f"  source: docker-registry at {source.host}\n  target: docker-registry at {target.host}, empty")
        desk = Desk(folder, source.host, target.host)
        (folder / "demo.yaml").write_text(CONFIG.format(source=source.host, target=target.host))

        heading("2. Images for two architectures, pushed with skopeo")
        first = first_release(desk)

        heading("3. The first sync")
        source.mark()
        print(_indented((folder / "demo.yaml").read_text()))
        desk.sync(copied=len(first), up_to_date=0)
        read, written = source.requests(), target.requests()
        blobs = desk.blobs()
        check(
            sorted(asked_for(read, "GET blob", 200)) == sorted(blobs),
            f"each of the {len(blobs)} blobs was read from the source once",
        )
        check(sorted(asked_for(written, "PUT upload", 201)) == sorted(blobs), "each was uploaded to the target once")
        check(
            len(asked_for(written, "POST mount", 201)) == 3,
            "the 3 layers that both repositories use were mounted in the second, not sent",
        )

        heading("4. Is it the same?")
        desk.compare(first)
        run_from_image(desk, f"{target.host}/copies/shfmt:latest", "shfmt", expected="v3.14.0")
        run_from_image(desk, f"{target.host}/copies/toolbox:1.0", "rg", expected="ripgrep 15.2.0")

        heading("5. The second sync: nothing has changed")
        source.mark()
        target.mark()
        desk.sync(copied=0, up_to_date=len(first))
        read = source.requests()
        check(not target.writes(), "the target got no POST, PUT, PATCH or DELETE")
        check(not [seen for seen in read if seen.kind == "GET blob"], "no blob was read")
        check(not [seen for seen in read if seen.kind == "GET manifest"], "no manifest was fetched: HEAD was enough")

        heading("6. A release: 4.2.0 appears, and `latest` moves to it")
        moved = second_release(desk)
        source.mark()
        target.mark()
        desk.sync(copied=len(moved), up_to_date=len(first) + 1 - len(moved))
        read, written = source.requests(), target.requests()
        new = desk.blobs() - blobs
        check(
            sorted(asked_for(read, "GET blob", 200)) == sorted(new),
            f"the {len(new)} new blobs were read, and no others",
        )
        check(sorted(asked_for(written, "PUT upload", 201)) == sorted(new), "they were uploaded, and no others")
        tags = {name for name in asked_for(written, "PUT manifest", 201) if ":" not in name}
        check(tags == {"4.2.0", "latest"}, "the tags `4.2.0` and `latest` were written, and no others")
        desk.compare(first | moved)
        run_from_image(desk, f"{target.host}/copies/shfmt:latest", "shfmt", expected="v3.14.1")


def first_release(desk: Desk) -> dict[str, str]:
    """Build and push; `repository:tag` -> digest of what was pushed."""
    found = {(program.name, program.architecture): program for program in programs("first", _cache())}
    for program in found.values():
        size = len(program.binary) / 2**20
        print(
            f"  {program.name} for {program.architecture}: static, {size:.1f} MiB, of wheel version {program.version}"
        )
    base = base_layer()
    layers = {key: program_layer(program) for key, program in found.items()}

    shfmt = desk.layout(SHFMT)
    images = {
        arch: shfmt.image(arch, [base, layers["shfmt", arch]], entrypoint="/usr/bin/shfmt", version="4.1.0")
        for arch in ARCHITECTURES
    }
    index = shfmt.index(images.values())
    pushed = _push(desk, SHFMT, shfmt, dict.fromkeys(("4.1.0", "4.1", "stable", "latest"), index))
    pushed |= _push(desk, SHFMT, shfmt, {"4.1.0-amd64": images["amd64"]})

    toolbox = desk.layout(TOOLBOX)
    index = toolbox.index(
        toolbox.image(arch, [base, layers["shfmt", arch], layers["rg", arch]], entrypoint="/usr/bin/rg", version="1.0")
        for arch in ARCHITECTURES
    )
    return pushed | _push(desk, TOOLBOX, toolbox, {"1.0": index, "latest": index})


def second_release(desk: Desk) -> dict[str, str]:
    layout, base = desk.layout(SHFMT), base_layer()
    found: list[Program] = programs("second", _cache())
    index = layout.index(
        layout.image(program.architecture, [base, program_layer(program)], entrypoint="/usr/bin/shfmt", version="4.2.0")
        for program in sorted(found, key=lambda program: program.architecture)
    )
    return _push(desk, SHFMT, layout, {"4.2.0": index, "latest": index})


def _push(desk: Desk, repository: str, layout: Layout, roots: dict[str, Json]) -> dict[str, str]:
    for tag, root in roots.items():
        layout.tag(tag, root)
        desk.push(layout, tag, repository)
    return {f"{repository}:{tag}": str(root["digest"]) for tag, root in roots.items()}


def _cache() -> Path:
    CACHE.mkdir(exist_ok=True)
    return CACHE


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines()).rstrip()


if __name__ == "__main__":
    if platform.system() != "Linux":
        sys.exit("The demonstration needs Linux: it runs programs out of the images that it copies.")
    sys.exit(main())

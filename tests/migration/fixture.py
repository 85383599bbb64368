"""The repositories that the files in data/ refer to, and the pairs of references that a configuration selects there."""

from __future__ import annotations

from pathlib import Path

from mirror.config import MirrorConfig, load
from mirror.selection.locations import MATCHED
from mirror.selection.tag_rules import select

DATA = Path(__file__).parent / "data"
SOURCE, TARGET, SECOND = "source.example.com", "target.example.com", "second.example.com"
# The tags of each repository in SOURCE.
REPOSITORIES = {
    "library/alpine": "latest edge 3 3.17 3.17.3 3.18 3.18.4 3.19 3.19.1 3.19.1-r1 20240606 3.20.0_rc1 V3.19",
    "library/golang": "1.20 1.20.14 1.21 1.21.0 1.21rc2 1.21.9-alpine 1.21.9-alpine3.19 1.22.0 1.22.1 1.22-rc-alpine "
    "1.22.2-windowsservercore-1809 tip-20240101 latest",
    "prometheus/prometheus": "v2.45.0 v2.45.0-rc.0 v2.45.6 v2.50.0 v2.50.1 v2.53.0-rc.1 v2.53.0 v3.0.0-beta.0 v3.0.0 "
    "v3.1.0 main latest",
    "team/app": "1.0.0 1.0.1 1.1.0 1.2.0-rc.1 1.2.0-rc.01 1.2.0 01.2.3 2.0.0 2.0.0-0 2.0.0-alpine 10.0.17763.2114 dev "
    "dev-42 v1.0.0",
    "team/base/os": "22.04 24.04 24.10 latest",
    "team/app-dev": "1.0.0 dev",
    "other/web": "1 1.0 2 stable",
}
# The digest of team/app:1.0.0.
DIGEST = "sha256:0e1be640542e22762dced12edc2c7277ff6ad132485ef94293a08640d6ddcc7d"


def files(tool: str) -> list[Path]:
    """Return the ten files of a tool."""
    return sorted((DATA / tool).glob("[0-9][0-9].*"))


def selected_pairs(config: Path) -> dict[str, str]:
    """Return what a configuration of ours selects: the source reference of each target reference."""
    pairs: dict[str, str] = {}
    for mirror in load(config, secrets=False).mirrors:
        for matched, repository in _repositories(mirror):
            tags = select(mirror.tags, REPOSITORIES[repository].split()).selected
            for target, template in zip(mirror.targets, mirror.tag_templates, strict=True):
                written = f"{target.host}/{target.path.replace(MATCHED, matched)}"
                source = f"{mirror.source.host}/{repository}"
                if mirror.tags.digest is not None and not mirror.tags.literal:
                    name = f":{template.before}" if template.is_fixed else f"@{mirror.tags.digest}"
                    pairs[f"{written}{name}"] = f"{source}@{mirror.tags.digest}"
                pin = f"@{mirror.tags.digest}" if mirror.tags.digest else ""
                pairs |= {f"{written}:{template.apply(tag)}": f"{source}:{tag}{pin}" for tag in tags}
    return pairs


def _repositories(mirror: MirrorConfig) -> list[tuple[str, str]]:
    """Return the text that the wildcard of a mirror matched in each of its source repositories, and the repository."""
    assert mirror.source.host == SOURCE, mirror.source
    if not mirror.wildcard:
        return [("", mirror.source.path)]
    prefix = f"{mirror.source.path}/" if mirror.source.path else ""
    below = [name for name in REPOSITORIES if name.startswith(prefix)]
    selected, _ = mirror.repositories.select(below, prefix)
    return [(name.removeprefix(prefix), name) for name in selected]

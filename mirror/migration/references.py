"""Parses the references of other tools, which accept several names for Docker Hub."""

from __future__ import annotations

from mirror.errors import ConfigError
from mirror.migration.peer_file import ToolMapping
from mirror.migration.registry_settings import canonical_host
from mirror.oci.reference import Repository, names_host


def parse_repository(peer: ToolMapping, key: str | None, text: str) -> str:
    """Convert a repository to the form of a `mirror` configuration. Raises NotConvertible if it is invalid."""
    first, slash, rest = text.partition("/")
    try:
        return str(Repository.parse(f"{canonical_host(first)}/{rest}" if slash and names_host(first) else text))
    except ConfigError as error:
        peer.reject(key, f"left out: {error}")

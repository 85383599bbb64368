"""The configuration: YAML to immutable values, every error with file:line:column and the key's path."""

from mirror.config.loader import Config, LogConfig, Parallel, load, state_directory
from mirror.config.mirrors import MirrorConfig
from mirror.config.problems import ConfigErrors, Place, Problem
from mirror.config.schema import schema_text

__all__ = [
    "Config",
    "ConfigErrors",
    "LogConfig",
    "MirrorConfig",
    "Parallel",
    "Place",
    "Problem",
    "load",
    "schema_text",
    "state_directory",
]

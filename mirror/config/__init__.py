"""Parses the YAML configuration into frozen values. Every error names the file, line, column and key."""

from mirror.config.loader import Config, LogConfig, Parallel, default_state_directories, load, state_directory
from mirror.config.mirrors import MirrorConfig
from mirror.config.problems import ConfigErrors, ConfigProblem, Position
from mirror.config.schema import schema_text

__all__ = [
    "Config",
    "ConfigErrors",
    "ConfigProblem",
    "LogConfig",
    "MirrorConfig",
    "Parallel",
    "Position",
    "default_state_directories",
    "load",
    "schema_text",
    "state_directory",
]

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mirror.util.shell_commands import insert_path, quote_path


@pytest.mark.parametrize("config", ["-prod.yaml", "/etc/my mirror/prod.yaml"])
def test_the_path_of_a_configuration_is_one_argument_of_a_command(config: str) -> None:
    command = insert_path("run `mirror sync --deep CONFIG`", Path(config)).removeprefix("run ").strip("`")
    assert ["mirror", "sync", "--deep", config] == [word.removeprefix("./") for word in shlex.split(command)]
    assert not shlex.split(command)[-1].startswith("-")


def test_only_commands_of_mirror_get_the_path() -> None:
    text = "set the environment variable CONFIG, then run `other CONFIG` and `mirror sync CONFIG`, see CONFIG"
    assert text.replace("sync CONFIG", "sync a.yaml") == insert_path(text, Path("a.yaml"))


def test_without_a_configuration_the_command_is_the_one_for_a_copy() -> None:
    assert "run `mirror copy --repair SOURCE TARGET`" == insert_path("run `mirror sync --repair CONFIG`", None)


@pytest.mark.parametrize("path", ["/srv/a b", "it's", "$HOME/*", "-r", "; true"])
def test_a_shell_reads_a_quoted_path_as_one_word_that_is_no_option(path: str) -> None:
    (word,) = shlex.split(quote_path(path))
    assert path == word.removeprefix("./")
    assert not word.startswith("-")

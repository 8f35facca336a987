"""README, the top-level help and the commands' own help say the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from p2pgrid.cli.main import COMMANDS, SECTIONS, cli

README = (Path(__file__).parents[2] / "README.md").read_text()


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below `command`, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, *path, name)


ALL = dict(commands(cli))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert ALL[path].help, f"{path} says nothing of itself"
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts[0]} says nothing of itself"


@pytest.mark.parametrize("path", [p for p, c in ALL.items() if not isinstance(c, click.Group)], ids=" ".join)
def test_every_command_speaks_json(path: tuple[str, ...]) -> None:
    assert any("--json" in parameter.opts for parameter in ALL[path].params)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_lines_of_the_help_are_the_commands_own(name: str) -> None:
    own = (ALL[(name,)].help or "").split("\n")[0]
    assert own == COMMANDS[name][1]


def test_every_command_is_in_one_section() -> None:
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(COMMANDS)


def test_the_help_and_readmes_table_have_the_sections() -> None:
    shown = CliRunner().invoke(cli, ["--help"], terminal_width=200).output
    table = README.partition("\n## Commands\n")[2].partition("\n## ")[0]
    in_help = re.findall(r"^(?:([A-Z][\w ]+):$|  ([a-z][\w-]+) +([A-Z].+)$)", shown, flags=re.MULTILINE)
    in_readme = re.findall(r"^\| (?:\*\*([\w ]+)\*\* \| \|$|`([\w-]+)` \| (.+) \|$)", table, flags=re.MULTILINE)
    expected = []
    for title, names in SECTIONS.items():
        expected += [(title, "", ""), *(("", name, COMMANDS[name][1]) for name in names)]
    assert in_readme == expected
    assert in_help[in_help.index(expected[0]) :] == expected


LINES = re.findall(r"^(p2pgrid .+?)(?:\s+#.*)?$", README, flags=re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_readmes_commands_exist_with_their_options(line: str) -> None:
    words = shlex.split(line)[1:]
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in ALL:
        path = (*path, words.pop(0))
    known = {option for parameter in ALL[path].params for option in parameter.opts}
    assert path, line
    assert {word for word in words if word.startswith("-")} <= known, line


def test_readme_shows_every_role() -> None:
    assert len(LINES) >= 8

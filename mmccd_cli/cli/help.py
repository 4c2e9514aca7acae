"""Help texts as plain lines of at most 80 columns: input and output first."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_WIDTH = 80
_INDENT = 26  # where explanations begin
_FIRST = ("Arguments", "Input", "Output", "Options")
_LAST = ("Method", "Weights", "Computing", "Messages")
_KINDS = {"path": "PATH", "int": "N", "int range": "N", "float": "X", "float range": "X"}
"""What Typer calls a type, and what stands for a value of it."""


class _PlainHelp:
    """How help is laid out; mixed into the commands and groups of Typer."""

    def format_usage(self: Any, ctx: Any, formatter: Any) -> None:
        """Write the first line."""
        words = re.sub(r"[{}]", "", " ".join(self.collect_usage_pieces(ctx)))
        formatter.write(f"Usage: {ctx.command_path} {words}\n")

    def format_help_text(self: Any, ctx: Any, formatter: Any) -> None:
        """Write what the command does, wrapped; lists such as examples as they stand."""
        for paragraph in inspect.cleandoc(self.help or "").split("\n\n"):
            is_list = ":\n " in paragraph
            formatter.write(f"\n{paragraph if is_list else _wrapped(paragraph, 2)}\n")

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, panel by panel."""
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in _FIRST}
        for one in self.get_params(ctx):
            if (row := one.get_help_record(ctx)) is not None:
                argument = one.param_type_name == "argument"
                panel = "Arguments" if argument else getattr(one, "rich_help_panel", None)
                panel = "Messages" if one.name == "help" else panel
                names = re.sub(r" <.*>", _nothing if argument else _value, row[0])
                panels.setdefault(panel or "Options", []).append((names, _explained(row[1])))
        last = {name: panels.pop(name, []) for name in _LAST}
        _write_panels(formatter, panels | last)


def check_words(words: Sequence[str]) -> None:
    """Refuse what a shell left in the place of a path: nothing, or a ~ that it did not replace.

    An empty path would be the folder in which one is, and ~ a new folder of that name.

    Raises:
        typer.BadParameter: There is such a word.
    """
    for place, word in enumerate(words):
        is_joined = word.startswith("--") and "=" in word
        option, value = word.split("=", 1) if is_joined else ("", word)
        if value == "~" or value.startswith("~/"):
            named = f"{option} {value}".lstrip()
            raise typer.BadParameter(
                f"the shell left the ~ of {word} as it is, which it replaces only where a word "
                f"begins with it, without quotes: {named}. A folder of that name is ./{value}."
            )
        if not value:
            before = option or (words[place - 1] if place else "")
            after = f" after {before}" if before.startswith("-") else ""
            raise typer.BadParameter(
                f'there is an empty word{after}, as of a variable that is not set: "$NAME".'
            )


class PlainCommand(_PlainHelp, TyperCommand):
    """A command with plain help, and plain words where a value is wrong."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was typed; see Typer."""
        check_words(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # of Typer's reader
            raise


class PlainGroup(_PlainHelp, TyperGroup):
    """A group of commands with plain help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        commands = (self.get_command(ctx, name) for name in self.list_commands(ctx))
        rows = [
            (str(c.name), (c.help or "").split("\n\n")[0]) for c in commands if c and not c.hidden
        ]
        _write_panels(formatter, {"Commands": rows})
        super().format_options(ctx, formatter)


class Program(typer.Typer):
    """A Typer program whose commands have plain help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=PlainGroup, rich_markup_mode=None, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Declare a command; see `typer.Typer.command`."""
        return super().command(name, **{"cls": PlainCommand, **settings})


def _write_panels(formatter: Any, panels: dict[str, list[tuple[str, str]]]) -> None:
    for name, rows in panels.items():
        if rows:
            formatter.write("\n" + typer.style(f"{name}:", bold=True) + "\n")
            formatter.write("".join(_row(*row) for row in rows))


def _row(names: str, text: str) -> str:
    """Lay out one option: its names, and what it means beside or below them."""
    explained = _wrapped(text, _INDENT)
    if len(names) + 4 <= _INDENT:
        return f"  {names}".ljust(_INDENT) + explained.lstrip() + "\n"
    return f"  {names}\n{explained}\n"


def _wrapped(text: str, indent: int) -> str:
    margin = " " * indent
    return textwrap.fill(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _explained(text: str) -> str:
    """A help text whose defaults and ranges read as people write them."""
    text = re.sub(r"default: \((.*?)\)", r"default: \1", text.replace("\\[", "["))
    return re.sub(r"x>=(\d+)", r"from \1 up", text)


def _value(match: re.Match[str]) -> str:
    kind = match[0].strip(" <>")
    return f" {_KINDS.get(kind, 'TEXT')}"


def _nothing(match: re.Match[str]) -> str:
    return ""

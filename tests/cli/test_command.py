"""How functions become commands: groups of options, messages and exit codes."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from mmccd_cli.cli import options
from mmccd_cli.cli.app import app
from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import JsonConsole
from mmccd_cli.config import METHODS, PRESETS
from mmccd_cli.errors import DataError, UsageError

Call = Callable[..., Result]


@dataclass(frozen=True, kw_only=True)
class Oven:
    """A group of options, one of them required."""

    degrees: Annotated[int, typer.Option(min=0, help="How hot.", rich_help_panel="Heat")]
    mode: Annotated[Literal["top", "bottom"], typer.Option(help="Where from.")] = "top"
    oven: Annotated[int | None, typer.Option("--tins", parser=options.count)] = None
    """Called as the parameter of `bake` that holds the group, which must not matter."""

    def __post_init__(self) -> None:
        if self.degrees > 300:
            raise UsageError("The oven is too hot.", next_step="Give less than 300.")


@command
def bake(
    *, cake: Annotated[str, typer.Argument(help="What to bake.")], oven: Oven, console: JsonConsole
) -> None:
    """Bake a cake."""
    print("chatter of a library")
    failures = {
        "burnt": DataError("It is burnt.", cause="Nobody looked.", next_step="Look."),
        "gone": FileNotFoundError(2, "No such file", "tin"),
        "bug": ZeroDivisionError("one by none"),
        "stopped": KeyboardInterrupt(),
        "eaten": BrokenPipeError(),
        "left": typer.Exit(9),
    }
    if cake in failures:
        raise failures[cake]
    console.info(f"{cake} at {oven.degrees}")
    console.result(f"{oven} {console.as_json}")


@pytest.fixture
def call() -> Call:
    app = typer.Typer()
    app.command()(bake)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_fields_of_a_group_are_options(call: Call) -> None:
    done = call("pie", "--degrees", 180, "--mode", "bottom", "--tins", "auto", "--json")
    assert (done.exit_code, done.stderr) == (0, "chatter of a library\npie at 180\n")
    assert done.stdout == "Oven(degrees=180, mode='bottom', oven=None) True\n"
    assert call("pie", "--degrees", 180, "-q").stderr == "chatter of a library\n"


def test_help_has_panels_and_no_groups(call: Call) -> None:
    said = call("--help").stdout
    for word in ("Bake a cake.", "Heat", "How hot.", "Messages", "--verbose", "top|bottom"):
        assert word in said
    assert "console" not in said.lower()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("pie",), 2, "Missing option '--degrees'"),
        (("pie", "--degrees", 1, "--mode", "left"), 2, "bottom"),
        (("pie", "--degrees", 1, "--tins", 0), 2, "0 is not a count. Give 1, 2, ... or auto."),
        (("pie", "--degrees", 301), 2, "error: The oven is too hot.\n  next:  Give less than 300."),
        (("burnt", "--degrees", 1), 3, "error: It is burnt.\n  cause: Nobody looked.\n  next:"),
        (("gone", "--degrees", 1), 3, "tin cannot be used: No such file."),
        (("bug", "--degrees", 1), 1, "Unexpected ZeroDivisionError: one by none"),
        (("stopped", "--degrees", 1), 130, "interrupted"),
        (("eaten", "--degrees", 1), 141, ""),
        (("left", "--degrees", 1), 9, ""),
    ],
)
def test_errors_become_exit_codes(
    call: Call, words: tuple[object, ...], code: int, said: str
) -> None:
    done = call(*words)
    assert done.exit_code == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_traceback_only_with_vv(call: Call) -> None:
    assert "Traceback" in call("bug", "--degrees", 1, "-vv").stderr


def test_choices_are_those_of_the_settings() -> None:
    from mmccd_cli.cli.options import StepOptions

    hints = get_type_hints(StepOptions)
    assert get_args(get_args(hints["preset"])[0]) == tuple(PRESETS)
    assert get_args(get_args(hints["method"])[0]) == METHODS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("auto", None), ("10mm3", 10), ("10", 10), ("10 mm³", 10), ("0.01ml", 10), ("0.5 ML", 500),
        ("5 µl", 5), ("2cm3", 2000), ("1e-2 cc", 10), ("1e1", 10), ("0", 0),
    ],
)  # fmt: skip
def test_volumes(text: str, value: float | None) -> None:
    assert options.volume_mm3(text) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (options.volume_mm3, text)
        for text in ("", "ml", "-1", "1..2", "10 kg", "ten", "nan", "inf", "1e999", "1e999ml")
    ]
    + [(options.map_value, text) for text in ("0", "1", "nan", "half", "-0.5")]
    + [(options.count, text) for text in ("0", "-1", "1.5", "x", "9" * 20, "²")]
    + [(partial(options.count, least=0), "-1")],
)
def test_what_is_no_value(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a"):
        read(text)


def test_more_threads_than_a_computer_has_are_refused() -> None:
    assert options.count_of_threads("1024") == 1024
    with pytest.raises(typer.BadParameter, match="at most 1024"):
        options.count_of_threads("100000")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["", "--out", "map.nii.gz"], "an empty word, as of a variable"),
        (["a", "--out-dir", ""], "an empty word after --out-dir"),
        (["a", "--out-dir="], "an empty word after --out-dir"),
        (["a", "--out-dir=~/out"], "begins with it, without quotes: --out-dir ~/out"),
        (["~/a", "--out-dir", "out"], "the ~ of ~/a"),
    ],
)
def test_what_a_shell_left_of_a_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["segment", *words])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_brain_mask_is_told_from_a_method() -> None:
    assert options.parse_skull_strip("never") == ("never", None)
    assert options.parse_skull_strip("B.NII.gz") == ("mask", Path("B.NII.gz"))


def test_names_cannot_steer_the_terminal(capsys):
    console = JsonConsole()
    console.info("one\x1b[2J\r")
    console.error(DataError("two\x9b", cause="three\u202e", next_step="four\n"), about="é\x07")
    said = capsys.readouterr().err
    assert "one\\x1b[2J\\r\n" in said
    assert "é\\x07: two\\x9b\n  cause: three\\u202e\n  next:  four\n" in said
    assert not set(said) & set("\x1b\r\x07\x9b\u202e")


@pytest.mark.parametrize("ends_with", [0, 6])
def test_a_full_stdout_stops_no_work_and_is_told_in_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ends_with: int
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    done = []

    def work(console: JsonConsole) -> None:
        for number in range(3):
            console.record({"number": number})
            done.append(number)
        if ends_with:
            raise typer.Exit(ends_with)

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(typer.Exit) as ended:
        command(work)(quiet=False, verbose=0, as_json=True)
    assert done == [0, 1, 2]
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.count("could not be printed to stdout") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("> /dev/full", 2, "could not be printed to stdout"),
        (">&-", 2, "could not be printed to stdout"),
        ("2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
    ],
)
def test_streams_that_take_nothing_are_no_bug(where: str, code: int, said: str) -> None:
    line = f'"{sys.executable}" -m mmccd_cli schema {where}'
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code
    assert said in done.stderr
    assert code or '"$defs"' in done.stdout

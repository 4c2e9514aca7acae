"""Which folders the words of a command line mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmccd_cli.cli.console import Console
from mmccd_cli.errors import UsageError

if TYPE_CHECKING:
    from mmccd_cli.cohort.shards import Shard


def choose_shard(text: str, folders: Sequence[Path], console: Console) -> Shard | None:
    """Read --shard, and say what it means."""
    from mmccd_cli.cohort import shards

    shard = shards.choose_shard(text, folders)
    if shard is not None:
        everything = " (--shard off takes all)" if text == "auto" else ""
        console.info(shard.describe(folders) + everything)
    return shard


def list_folders(subjects: Sequence[str], listed_in: Path | None, null: bool) -> list[Path]:
    """Collect the subjects' folders from arguments, stdin and a list."""
    if null and "-" not in subjects and listed_in is None:
        raise UsageError("--null says how a list ends its lines, but there is no list.")
    folders: list[Path] = []
    for word in subjects:
        folders += _split(sys.stdin.buffer.read(), null) if word == "-" else [Path(word)]
    if listed_in is not None:
        folders += _split(listed_in.read_bytes(), null)
    if not folders and ("-" in subjects or listed_in is not None):
        raise UsageError("The list of subjects is empty.", next_step="Check what should fill it.")
    return folders


def _split(content: bytes, null: bool) -> list[Path]:
    text = os.fsdecode(content)  # names need not be valid in any encoding
    lines = text.split("\0") if null else text.replace("\r\n", "\n").split("\n")
    return [Path(line) for line in lines if line.strip()]

"""Shares of a cohort for the tasks of a cluster's array, each task finding its own by itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmccd_cli.errors import UsageError
from mmccd_cli.files import resolved

_SLURM = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Shard:
    """One of several shares, numbered from 1, and where that was said, for people."""

    index: int
    count: int
    origin: str = "--shard"

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise UsageError(
                f"{self.origin} {self.index}/{self.count} is no share.",
                next_step="Give --shard I/N with I from 1 to N.",
            )

    def pick(self, folders: Sequence[Path]) -> list[Path]:
        """Return the folders of this share.

        Every folder is in exactly one share, whatever the order in which each task lists them:
        `find` lists a folder differently on different file systems.
        """
        ordered = sorted({resolved(path): path for path in folders}.items())
        mine = {path for path, _ in ordered[self.index - 1 :: self.count]}
        return [path for path in folders if resolved(path) in mine]

    def describe(self, folders: Sequence[Path]) -> str:
        """Return which share this is, and how many of the folders are in it."""
        noun = "subject" if len(folders) == 1 else "subjects"
        mine = f"{len(self.pick(folders))} of {len(folders)} {noun}"
        return f"{self.origin} {self.index} of {self.count}: {mine}"

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def choose_shard(
    text: str, folders: Sequence[Path], environment: Mapping[str, str] = os.environ
) -> Shard | None:
    """Read which share of some folders is wanted.

    Args:
        text: "I/N"; "auto" asks the variables of a SLURM array where there are several folders,
            and "off" takes all.
        folders: Subjects' folders; none where a subject was given as files.
        environment: Where a cluster says which task this is.

    Returns:
        The share, or None for all.

    Raises:
        UsageError: No share, an array whose numbers have gaps, or no folders to divide.
    """
    if text == "off" or (text == "auto" and len(folders) < 2):
        return None
    if text == "auto":
        return _slurm_shard(environment)
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None:
        raise UsageError(
            f"--shard {text} is not a share.", next_step="Give --shard I/N, such as 1/8, or off."
        )
    shard = Shard(int(match[1]), int(match[2]))
    if not folders:
        raise UsageError("--shard divides folders, but a subject was given as files.")
    return shard


def _slurm_shard(environment: Mapping[str, str]) -> Shard | None:
    names = ("ID", "COUNT", "MIN")
    if not all(environment.get(_SLURM + name, "").isdigit() for name in names):
        return None
    task, count, first = (int(environment[_SLURM + name]) for name in names)
    step = int(environment.get(f"{_SLURM}STEP") or 1) or 1
    place, rest = divmod(task - first, step)
    if rest or not 0 <= place < count:
        raise UsageError(
            f"The SLURM array's task {task} is not one of {count} from {first} in steps of {step}.",
            cause="The array's numbers have gaps, as in --array=1,3,7.",
            next_step="Give --shard I/N, or --shard off for all subjects.",
        )
    return Shard(place + 1, count, f"SLURM array task {task}: share") if count > 1 else None

"""From a data set of scans to slice shards: what `mmccd prepare` does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmccd_cli import __version__
from mmccd_cli.config import MODALITIES, PreprocessingConfig, to_dict
from mmccd_cli.errors import DataError, MmccdError, UsageError
from mmccd_cli.files import read_json_as, sha256_of_file
from mmccd_cli.inputs.nifti import read_nifti
from mmccd_cli.inputs.scans import read_image, sha256_of_image
from mmccd_cli.inputs.subjects import Subject, find_subjects
from mmccd_cli.inputs.volume import Volume
from mmccd_cli.preprocessing.spatial import resample, same_grid
from mmccd_cli.preprocessing.subject import PreparedSubject, prepare_subject
from mmccd_cli.progress import silent
from mmccd_cli.template import Quantisation, Template
from mmccd_cli.training.mean_template import MeanTemplate, common_grid, symmetrised
from mmccd_cli.training.normal_ranges import fit_normal_ranges
from mmccd_cli.training.recipes import RECIPES, Recipe
from mmccd_cli.training.slices import (
    INDEX,
    TEMPLATE,
    SubjectVolumes,
    read_index,
    subjects_of,
    write_index,
    write_shard,
    write_template,
)

MADE_FROM = "made_from"
"""Key of the slices' index that tells, by option, the hash of what they were made from."""
SUBJECTS_FOR_TEMPLATE = 100
"""Of a large data set so many are enough."""
_UNDIVIDED = ".undivided"
"""Folder of slices from which a template learns what to divide by."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """How a data set becomes shards.

    Attributes:
        recipe: What the slices are for: voxel size, normalisation, and what healthy tissue is.
        require_segmentation: Whether subjects without a segmentation are left out; a folder of
            healthy subjects has none.
        strict: Whether the first unusable subject stops everything.
    """

    recipe: Recipe = RECIPES["compact"]
    require_segmentation: bool = False
    strict: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class SliceSource:
    """What slices are made from.

    Attributes:
        data_dir: Folder of subjects.
        settings: Grid, normalisation, and what is left out.
        split: Name of a split -> ids; None for the default one.
        template: What subjects are registered to; None for their own mean.
    """

    data_dir: Path
    settings: PrepareSettings = field(default_factory=PrepareSettings)
    split: dict[str, list[str]] | None = None
    template: Template | None = None


@dataclass(frozen=True)
class PreparedDataset:
    """What `prepare_dataset` did.

    Attributes:
        subjects: Ids of the subjects that were written.
        skipped: (name, reason) of those that were not.
    """

    subjects: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def prepare_dataset(
    data_dir: Path,
    folder: Path,
    settings: PrepareSettings,
    *,
    split: dict[str, list[str]] | None = None,
    template: Template | None = None,
    report: Callable[[str, int, int], None] = silent,
) -> PreparedDataset:
    """Turn every subject of a data set into slices on one grid.

    Every subject is registered to a template: the one that is given, or the mean of subjects that
    already share a space, as all BraTS releases do, made symmetric. Scans are divided by their
    gains, as `prepare_subject` does it. Where the template does not know healthy tissue, it learns
    it from the split `train`, whose subjects are prepared for that once before, as they are.

    Args:
        data_dir: Folder of subjects.
        folder: Where shards go; created where missing.
        settings: Grid, normalisation, and what is left out.
        split: Name of a split -> ids; None draws a deterministic one by id.
        template: What to register to; None for data in a common space.
        report: Called with each subject's id, its number and the number of all. Those from whom the
            template learns count two or three times.

    Raises:
        DataError: No usable subject; or, with `strict`, the first unusable one.
    """
    skipped: list[tuple[Path, str]] = []
    found = find_subjects(data_dir, skipped=skipped)
    problems = [(path.name, reason) for path, reason in skipped]
    usable = _with_all_modalities(found, settings, problems)
    there = {*(subject.id for subject in found), *(path.name for path, _ in skipped)}
    for name, members in (split or {}).items():
        reason = f"stands in the split {name}, but is no subject of {data_dir}"
        problems += [(member, reason) for member in members if member not in there]
    assigned = assign_splits([s.id for s in usable], split)
    if not usable or (settings.strict and problems):
        raise _nothing_usable(data_dir, settings, problems)
    made_from = _describe_source(found, settings, split=split, template=template)
    of_train = [s for s in usable if assigned[s.id] == "train"]
    makers = of_train[:SUBJECTS_FOR_TEMPLATE] if template is None else []
    teachers = [] if template is not None and template.normal else of_train
    numbers, total = count(1), len(makers) + len(teachers) + len(usable)
    writer = _Writer(settings, assigned, lambda name: report(name, next(numbers), total))
    if template is None:
        grid = common_grid(usable, settings.recipe, strict=settings.strict)
        template = writer.mean_template(makers, grid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # it would not speak of slices that are replaced
    if teachers:
        template = writer.teach(template, teachers, folder)
    index = writer.write(usable, template, folder, problems)
    if not index["subjects"]:
        raise _nothing_usable(data_dir, settings, problems)
    write_index(folder, index | {MADE_FROM: made_from})
    return PreparedDataset(tuple(e["id"] for e in index["subjects"]), tuple(problems))


@dataclass(frozen=True)
class _Writer:
    """Prepares subjects, one after the other.

    Attributes:
        settings: How.
        assigned: Id -> its split.
        tell: Called with each subject's id before it is prepared.
    """

    settings: PrepareSettings
    assigned: Mapping[str, str]
    tell: Callable[[str], None]

    def mean_template(self, subjects: Sequence[Subject], grid: Template) -> Template:
        """The symmetric mean of subjects as they lie in their common space.

        Raises:
            DataError: None of them can be prepared.
        """
        preprocessing = self.settings.recipe.preprocessing
        as_they_lie = replace(preprocessing, template_registration="none")
        mean = MeanTemplate(grid, preprocessing.intensity.background)
        reasons = []
        for subject in subjects:
            self.tell(subject.id)
            try:
                volumes = {m: read_image(subject, m)[0] for m in MODALITIES}
                mean.add(prepare_subject(volumes, grid, as_they_lie))
            except MmccdError as error:
                if self.settings.strict:
                    raise  # otherwise it is left out, with its reason, when its turn comes
                reasons.append(f"{subject.id}: {error.message}")
        if len(reasons) == len(subjects):
            raise DataError(
                "No subject of the split `train` could be prepared.",
                cause="; ".join(reasons[:3]) or "It has none that can be used.",
                next_step="Repair them, or give another --split.",
            )
        return symmetrised(mean.template())

    def teach(self, template: Template, subjects: Sequence[Subject], folder: Path) -> Template:
        """Let a template learn what healthy tissue of subjects looks like.

        Their slices, not divided by gains yet, lie in a folder of their own meanwhile.
        """
        first = folder / _UNDIVIDED
        shutil.rmtree(first, ignore_errors=True)
        first.mkdir()
        try:
            index = self.write(subjects, template, first, [])
            if not index["subjects"]:
                return template
            write_index(first, index)
            normal = fit_normal_ranges(first, subjects_of(index, "train"), self.settings.recipe)
        finally:
            shutil.rmtree(first, ignore_errors=True)
        return replace(template, normal=normal)

    def write(
        self,
        subjects: Sequence[Subject],
        template: Template,
        folder: Path,
        problems: list[tuple[str, str]],
    ) -> dict[str, Any]:
        """Write subjects' shards and their template.

        Args:
            subjects: Whom.
            template: What they are registered to.
            folder: Where to.
            problems: (id, reason) of those that cannot be used; they are added.

        Returns:
            What `dataset.json` is to say.
        """
        entries: list[dict[str, Any]] = []
        preprocessing = self.settings.recipe.preprocessing
        for subject in subjects:
            self.tell(subject.id)
            try:
                entry = _write_subject(
                    subject, template, preprocessing=preprocessing, folder=folder
                )
            except MmccdError as error:
                if self.settings.strict:
                    raise
                problems.append((subject.id, error.message))
                continue
            entries.append({**entry, "split": self.assigned[subject.id]})
        write_template(folder, template)
        return _index(entries, template, preprocessing=preprocessing, problems=problems)


def check_source(folder: Path, source: SliceSource) -> None:
    """Refuse slices that were made from something else; those of older versions do not say it.

    Subjects are told by their names, and by the names and sizes of their files. Grid and
    normalisation are in the slices' index, and are none of this.

    Raises:
        UsageError: They were.
        DataError: The slices' index, or the data set, cannot be read.
    """
    index = read_index(folder)
    if MADE_FROM not in index:
        return
    now = _describe_source(
        find_subjects(source.data_dir),
        source.settings,
        split=source.split,
        template=source.template,
    )
    known = index[MADE_FROM] if isinstance(index[MADE_FROM], dict) else {}
    if other := [f"--{name}" for name, said in now.items() if known.get(name) != said]:
        raise UsageError(
            f"The slices in {folder} were made with another {' and '.join(other)}.",
            cause="An earlier run left them, and they would be trained on instead.",
            next_step=f"Give another folder by --work, or train on them: --prepared {folder}",
        )


def _describe_source(
    found: Sequence[Subject],
    settings: PrepareSettings,
    *,
    split: dict[str, list[str]] | None,
    template: Template | None,
) -> dict[str, str]:
    """Hash what slices are made from, by the option that says it; no name can be read from it."""
    subjects = []
    for subject in found:
        files = [*subject.files, *filter(None, [subject.segmentation])]
        subjects.append([subject.id, sorted([path.name, path.stat().st_size] for path in files)])
    arrays: dict[str, NDArray] = {}
    if template is not None:
        arrays = {**template.images, "mask": template.mask, "affine": template.affine}
        for name, normal in template.normal.items():
            arrays |= {f"mean of {name}": normal.mean, f"spread of {name}": normal.spread}
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    facts = {
        "data-dir": sorted(subjects),
        "data": settings.require_segmentation,
        "split": split,
        "template": hashes,
    }
    return {
        name: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()
        for name, fact in facts.items()
    }


def assign_splits(ids: Sequence[str], split: dict[str, list[str]] | None) -> dict[str, str]:
    """Name the split of every subject.

    Args:
        ids: Subjects.
        split: Name -> ids; a subject that is in none belongs to "unused". None: by a hash of the
            id, 80 % train, 10 % val, 10 % test, so that a subject stays where it is when others
            join.

    Raises:
        DataError: A subject stands in two splits.
    """
    if split is not None:
        owner: dict[str, str] = {}
        for name, members in split.items():
            for member in members:
                if member in owner:
                    raise DataError(
                        f"{member} stands in the splits {owner[member]} and {name}.",
                        next_step="Give every subject to one split only.",
                    )
                owner[member] = name
        return {subject: owner.get(subject, "unused") for subject in ids}
    drawn = {s: int(hashlib.sha256(s.encode()).hexdigest()[:8], 16) % 100 for s in ids}
    return {s: "train" if n < 80 else "val" if n < 90 else "test" for s, n in drawn.items()}


def read_split(path: Path) -> dict[str, list[str]]:
    """Read a split file: JSON, name of a split -> list of subject ids.

    Raises:
        DataError: Not such a file.
    """
    return read_json_as(
        path,
        dict[str, list[str]],
        what="a split file",
        next_step='Write JSON of this form: {"train": ["id", ...], "val": ["id", ...]}',
    )


def _with_all_modalities(
    subjects: list[Subject], settings: PrepareSettings, problems: list[tuple[str, str]]
) -> list[Subject]:
    usable = []
    for subject in subjects:
        missing = [m for m in MODALITIES if m not in subject.paths]
        if f"{subject.id}.safetensors" == TEMPLATE:
            problems.append((subject.id, "has a name that the prepared folder needs for itself"))
        elif missing:
            problems.append((subject.id, f"lacks {', '.join(missing)}"))
        elif settings.require_segmentation and subject.segmentation is None:
            problems.append((subject.id, "lacks a segmentation"))
        else:
            usable.append(subject)
    return usable


def _write_subject(
    subject: Subject,
    template: Template,
    *,
    preprocessing: PreprocessingConfig,
    folder: Path,
) -> dict[str, Any]:
    """Prepare one subject, write its shard, and describe it."""
    volumes = {m: read_image(subject, m)[0] for m in MODALITIES}
    prepared = prepare_subject(volumes, template, preprocessing)
    if left_out := [m for m in MODALITIES if m not in prepared.images]:
        told = [note for note in prepared.notes if note.startswith(tuple(left_out))]
        raise DataError(" ".join(told))
    lesion = lesion_on_template(subject, prepared, template)
    images = {m: prepared.images[m] for m in MODALITIES}
    sliced = SubjectVolumes(images, prepared.brain, lesion & prepared.brain)
    write_shard(folder, subject.id, sliced.as_shard(Quantisation()))
    with_brain = prepared.brain.any((0, 1))
    return {
        "id": subject.id,
        "files": {m: sha256_of_image(subject, m) for m in MODALITIES},
        "segmentation": sha256_of_file(subject.segmentation) if subject.segmentation else None,
        "slices": int(with_brain.sum()),
        "healthy_slices": int((with_brain & ~lesion.any((0, 1))).sum()),
        "notes": list(prepared.notes),
    }


def lesion_on_template(
    subject: Subject, prepared: PreparedSubject, template: Template
) -> NDArray[np.bool_]:
    """Bring a subject's segmentation, any label of it, to the template's grid.

    Returns:
        (I, J, K) bool, where at least half of a voxel is labelled; nowhere without a segmentation.

    Raises:
        DataError: The segmentation cannot be read, or lies on another grid than the reference.
    """
    if subject.segmentation is None:
        return np.zeros(template.shape, dtype=bool)
    grid = prepared.reference_volume
    lesion = read_lesion(subject.segmentation, grid)
    matrix = np.linalg.inv(prepared.to_reference)
    share = Volume(lesion.astype(np.float32), grid.affine)
    sampled = resample(share, template.shape, template.affine, matrix=matrix, smooth=True)
    return sampled.data >= 0.5


def read_lesion(segmentation: Path, grid: Volume) -> NDArray[np.bool_]:
    """Read a segmentation that lies on the grid of its images.

    Args:
        segmentation: Its file.
        grid: The image that it was drawn on.

    Returns:
        (I, J, K) bool, any label of it.

    Raises:
        DataError: It cannot be read, or lies on another grid.
    """
    labels, _ = read_nifti(segmentation, allow_constant=True)
    if not same_grid(labels, grid):
        raise DataError(
            f"{segmentation} does not lie on the grid of its images.",
            next_step="Resample it to the grid of the first scan, or remove it.",
        )
    return np.asarray(labels.data > 0)


def _index(
    entries: list[dict[str, Any]],
    template: Template,
    *,
    preprocessing: PreprocessingConfig,
    problems: list[tuple[str, str]],
) -> dict[str, Any]:
    return {
        "modalities": list(MODALITIES),
        "spacing_mm": list(template.spacing_mm),
        "affine": template.affine.ravel().tolist(),
        "shape": list(template.shape),
        "background": preprocessing.intensity.background,
        "preprocessing": to_dict(preprocessing),
        "quantisation": asdict(Quantisation()),
        "subjects": entries,
        "skipped": [{"id": name, "reason": reason} for name, reason in problems],
        "made": {
            "version": __version__,
            "date": datetime.now(timezone.utc).date().isoformat(),
        },
    }


def _nothing_usable(
    data_dir: Path, settings: PrepareSettings, problems: list[tuple[str, str]]
) -> DataError:
    first = "; ".join(f"{name}: {reason}" for name, reason in problems[:3])
    if settings.strict and problems:
        return DataError(
            f"{len(problems)} subjects of {data_dir} cannot be used.",
            cause=first,
            next_step="Repair them, or leave them out by running without --strict.",
        )
    return DataError(
        f"No subject of {data_dir} can be used.",
        cause=first or None,
        next_step=f"Each needs {', '.join(MODALITIES)}; see also --split.",
    )

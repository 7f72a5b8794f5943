"""A mix: exactly which datasets a student learns from, one per game, by digest. DVC has no list in `deps`; a mix file has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.datasets.reader import Dataset, open_dataset, read_manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingredient:
    """One game's dataset: its name under data/datasets, its digest and its teacher's."""

    dataset: str
    digest: str
    teacher: str
    actions: int


def make_mix(datasets: Mapping[str, Path], teachers: Mapping[str, str]) -> dict[str, Ingredient]:
    """Game -> ingredient, for datasets by name. `teachers`: the digest each dataset must have been labelled by.

    ValueError where a dataset was labelled by another teacher, or two datasets are of one game.
    """
    mix: dict[str, Ingredient] = {}
    for name, folder in datasets.items():
        manifest = read_manifest(folder)
        teacher = manifest.teacher["digest"]
        if name in teachers and teacher != teachers[name]:
            raise ValueError(
                f"dataset {name} was labelled by teacher {teacher[:12]}, the teacher at hand is {teachers[name][:12]}: "
                f"collect it again with `dvc repro` or restore the teacher that labelled it"
            )
        if manifest.game in mix:
            raise ValueError(
                f"datasets {mix[manifest.game].dataset} and {name} are both of {manifest.game}: keep one, or merge them"
            )
        mix[manifest.game] = Ingredient(dataset=name, digest=manifest.digest, teacher=teacher, actions=manifest.actions)
    return mix


def write_mix(path: Path, mix: Mapping[str, Ingredient]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({game: asdict(i) for game, i in mix.items()}, indent=2, sort_keys=True) + "\n")


def read_mix(path: Path) -> dict[str, Ingredient]:
    """ValueError where the file is missing or not a mix."""
    try:
        return {game: Ingredient(**fields) for game, fields in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        raise ValueError(
            f"mix {path} does not exist: make it with `pd-pipeline mix --mix {path.stem}` or `dvc repro`"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a mix ({error}): make it again with `pd-pipeline mix --mix {path.stem}`") from None


def open_ingredient(folder: Path, ingredient: Ingredient, mix: str) -> Dataset:
    """Open a mix's dataset, its files checked. ValueError where it is not the one that the mix names."""
    dataset = open_dataset(folder, check_files=True)
    manifest = dataset.manifest
    if manifest.teacher["digest"] != ingredient.teacher:
        raise ValueError(
            f"dataset {ingredient.dataset} was labelled by teacher {manifest.teacher['digest'][:12]}, "
            f"mix {mix} expects {ingredient.teacher[:12]}: run `dvc repro` or `pd-pipeline mix --mix {mix}`"
        )
    if manifest.digest != ingredient.digest:
        raise ValueError(
            f"dataset {ingredient.dataset} is {manifest.digest[:12]}, mix {mix} expects {ingredient.digest[:12]}: "
            f"run `dvc repro` or `pd-pipeline mix --mix {mix}`"
        )
    return dataset

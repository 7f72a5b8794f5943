"""A mix: exactly which datasets a student learns from, by game and digest. DVC has no list in `deps`; a mix file has.

Beside it lies how they were collected. That is what a student depends on: on another make of CPU the same collection comes to
other records, and the student of the ones is not made anew because of the others.

A game may have several datasets, as where students played rounds that the teacher labelled; they are read as one.

Dimensions: N steps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.compare import differing
from pipeline.datasets.edit import beginnings
from pipeline.datasets.loader import Split, split_episodes
from pipeline.datasets.reader import Dataset, open_dataset, read_manifest
from pipeline.datasets.schema import EpisodeRow, Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingredient:
    """A dataset: its name under data/datasets, its digest and its teacher's."""

    dataset: str
    digest: str
    teacher: str
    actions: int


Mix = dict[str, tuple[Ingredient, ...]]
"""Game -> its datasets, in the order in which they are read."""


def make_mix(datasets: Mapping[str, Path], teacher_of: Callable[[str], str | None]) -> Mix:
    """The mix of these datasets by name. `teacher_of`: game -> the digest its datasets must have been labelled by, if any.

    ValueError where a dataset was labelled by another teacher, or two of one game cannot be read as one.
    """
    mix: Mix = {}
    environments: dict[str, Any] = {}
    for name, folder in datasets.items():
        manifest = read_manifest(folder)
        game, teacher = manifest.game, manifest.teacher["digest"]
        wanted = teacher_of(game)
        if wanted is not None and teacher != wanted:
            raise ValueError(
                f"dataset {name} was labelled by teacher {teacher[:12]}, the teacher at hand is {wanted[:12]}: "
                f"collect it again with `dvc repro` or restore the teacher that labelled it"
            )
        for other in mix.get(game, ()):
            unlike = [
                what
                for what, same in (
                    ("digest", other.digest != manifest.digest),
                    ("teacher", other.teacher == teacher),
                    ("actions", other.actions == manifest.actions),
                    ("environment", environments[game] == manifest.environment),
                )
                if not same
            ]
            if unlike:
                told = "are the same dataset" if unlike[0] == "digest" else f"are of {game} but differ in {', '.join(unlike)}"
                if "environment" in unlike:
                    each = differing(environments[game], manifest.environment)
                    told += f" ({', '.join(f'{key} {ours} and {theirs}' for key, ours, theirs in each)})"
                raise ValueError(f"datasets {other.dataset} and {name} {told}: a mix cannot have both, leave one out")
        environments[game] = manifest.environment
        found = Ingredient(dataset=name, digest=manifest.digest, teacher=teacher, actions=manifest.actions)
        mix[game] = (*mix.get(game, ()), found)
    return mix


def write_mix(path: Path, mix: Mapping[str, Sequence[Ingredient]]) -> None:
    """One object per game, or a list of them where it has several datasets."""
    fields = {game: [asdict(i) for i in ingredients] for game, ingredients in mix.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    short = {game: several[0] if len(several) == 1 else several for game, several in fields.items()}
    path.write_text(json.dumps(short, indent=2, sort_keys=True) + "\n")


def write_recipes(path: Path, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """What was asked for of each dataset (`recipe_of`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipes, indent=2, sort_keys=True) + "\n")


def recipe_of(manifest: Manifest, actor: str | None) -> dict[str, Any]:
    """How a dataset was collected, and nothing of what came out: the same wherever it is collected so again, as `actor`, the
    agent that acted, is named and not told by its weights. Of a dataset that was not collected, its digest.
    """
    collection = dict(manifest.collection)
    if "recipe" not in collection:
        return {"digest": manifest.digest}
    if actor is not None:
        collection["actor"] = actor
    told = {"game": manifest.game, "states": manifest.states, "teacher": manifest.teacher["digest"]}
    return told | {"environment": manifest.environment, "collection": collection}


def read_recipes(path: Path) -> dict[str, dict[str, Any]]:
    """What `write_recipes` wrote; nothing where there is none. ValueError where it is something else."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} has no recipes ({error}): make the mix again") from None
    if not isinstance(found, dict) or not all(isinstance(told, dict) for told in found.values()):
        raise ValueError(f"{path} has no recipes: make the mix again")
    return found


def read_mix(path: Path) -> Mix:
    """ValueError where the file is missing or not a mix."""
    try:
        found = json.loads(path.read_text())
        several = {game: fields if isinstance(fields, list) else [fields] for game, fields in found.items()}
        return {game: tuple(Ingredient(**fields) for fields in ingredients) for game, ingredients in several.items()}
    except FileNotFoundError:
        raise ValueError(
            f"mix {path} does not exist: make it with `pd-pipeline mix --mix {path.stem}` or `dvc repro`"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a mix ({error}): make it again with `pd-pipeline mix --mix {path.stem}`") from None


class Joined:
    """Datasets of one game, read as one: their episodes, and so their steps, one after another."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)
        self._begins = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        self.game, self.actions = parts[0].game, parts[0].actions
        self.episodes: tuple[EpisodeRow, ...] = tuple(
            row._replace(start=row.start + begin)
            for part, begin in zip(parts, self._begins, strict=False)
            for row in part.episodes
        )

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))

    def read(self, name: str, start: int, stop: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Steps `start` to `stop` of one array, decoded, into `out` if there is one. ValueError says what cannot be read."""
        pieces = []
        for part, begin in zip(self.parts, self._begins, strict=False):
            first, end = max(start, begin), min(stop, begin + len(part))
            if first < end:
                into = None if out is None else out[first - start : end - start]
                pieces.append(part.read(name, first - begin, end - begin, into))
        if out is not None:
            return out
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def split(self, fraction: float, seeds: Sequence[int]) -> Split:
        """Each dataset holds out episodes by its own seed, as it would alone: what has been learned from once is not held out
        later, when other datasets have joined.
        """
        splits = [split_episodes(part, fraction, seed) for part, seed in zip(self.parts, seeds, strict=True)]
        return Split(
            *(np.concatenate([s + b for s, b in zip(kind, self._begins, strict=False)]) for kind in zip(*splits, strict=True))
        )


def open_ingredients(folders: Mapping[str, Path], ingredients: Sequence[Ingredient], mix: str) -> Joined:
    """Open a game's datasets of a mix from the folders of their names, their files checked.

    ValueError where one is not the one that the mix names, or two have an episode in common: it could be learned from and
    held out at once.
    """
    joined = Joined([_open(folders[ingredient.dataset], ingredient, mix) for ingredient in ingredients])
    played = Counter((row.seed, row.sha256) for row in joined.episodes)
    if (common := sum(count > 1 for count in played.values()) + len(beginnings(joined.parts))) and len(ingredients) > 1:
        names = ", ".join(ingredient.dataset for ingredient in ingredients)
        raise ValueError(f"datasets {names} of mix {mix} have {common:,} episodes in common: join them with `dataset merge`")
    return joined


def _open(folder: Path, ingredient: Ingredient, mix: str) -> Dataset:
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

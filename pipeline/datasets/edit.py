"""New datasets from old ones: a subset, a split, a merge. Episodes stay whole and keep their digests; lineage is recorded.

Whole shards that come to lie where they lay are copied byte for byte, so that DVC pushes only what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pipeline.datasets import schema
from pipeline.datasets.describe import LINEAGE, card, licence_of
from pipeline.datasets.reader import WINDOW, Dataset
from pipeline.datasets.schema import EpisodeRow, Manifest
from pipeline.datasets.writer import Writer
from pipeline.progress import Progress
from pipeline.seeding import stream

Part = tuple[Dataset, Sequence[int]]
"""Episodes of a dataset, by index."""
SEVERAL: Final = {"digest": "several"}
"""The teacher, or the actor, of a dataset whose parents had different ones."""


def chosen(
    dataset: Dataset,
    *,
    min_return: float | None = None,
    max_return: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    episodes: int | None = None,
) -> list[int]:
    """The first `episodes` of those whose return and length (in steps) lie within the bounds, the bounds included."""

    def fits(row: EpisodeRow) -> bool:
        return (
            (min_return is None or row.episode_return >= min_return)
            and (max_return is None or row.episode_return <= max_return)
            and (min_length is None or row.length >= min_length)
            and (max_length is None or row.length <= max_length)
        )

    found = [index for index, row in enumerate(dataset.episodes) if fits(row)][:episodes]
    if not found:
        raise ValueError(f"dataset {dataset.folder}: no episode of its {len(dataset.episodes)} fits")
    if episodes is not None and len(found) < episodes:
        raise ValueError(f"dataset {dataset.folder}: only {len(found)} episodes fit, {episodes} were asked for")
    return found


def split(dataset: Dataset, shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Every episode to one name, at random, in about these shares (which sum to 1); each name gets at least one."""
    if abs(sum(shares.values()) - 1) > 1e-9 or min(shares.values()) <= 0:
        raise ValueError(f"the shares {', '.join(f'{k} {v:.0%}' for k, v in shares.items())} do not sum to 100%")
    count = len(dataset.episodes)
    order = stream(seed, "split").permutation(count).tolist()
    parts: dict[str, list[int]] = {}
    start, total = 0, 0.0
    for name, share in shares.items():
        total += share
        stop = round(total * count)
        parts[name] = sorted(order[start:stop])
        start = stop
    if empty := [name for name, indices in parts.items() if not indices]:
        raise ValueError(f"dataset {dataset.folder} has {count} episodes, none would fall to {', '.join(empty)}")
    return parts


def merged(datasets: Sequence[Dataset], *, any_teacher: bool = False, any_environment: bool = False) -> list[Part]:
    """All their episodes; one that several hold (same seed and records) once, as long as any holds it.

    ValueError names what they do not share.
    """
    first = datasets[0]
    for other in datasets[1:]:
        _check_alike(first, other, any_teacher=any_teacher, any_environment=any_environment)
    seen: set[tuple[int, str]] = set()
    parts: list[Part] = []
    begun = beginnings(datasets)
    for number, dataset in enumerate(datasets):
        rows = enumerate(dataset.episodes)
        indices = [i for i, row in rows if (row.seed, row.sha256) not in seen and (number, i) not in begun]
        seen |= {(dataset.episodes[i].seed, dataset.episodes[i].sha256) for i in indices}
        parts.append((dataset, indices))
    return parts


def beginnings(datasets: Sequence[Dataset]) -> set[tuple[int, int]]:
    """Episodes that were cut short and of which another dataset holds more: the datasets' numbers and theirs there."""
    by_seed: dict[int, list[tuple[Dataset, int]]] = {}
    for dataset in datasets:
        for index, row in enumerate(dataset.episodes):
            by_seed.setdefault(row.seed, []).append((dataset, index))
    found = set()
    for number, dataset in enumerate(datasets):
        for index, row in enumerate(dataset.episodes):
            if not row.complete and row.seed >= 0 and any(_goes_on(row, *other) for other in by_seed[row.seed]):
                found.add((number, index))
    return found


def _goes_on(row: EpisodeRow, other: Dataset, index: int) -> bool:
    """Whether the episode of another dataset begins with the records of this one and has more."""
    more = other.episodes[index]
    return more.length > row.length and row.sha256 == schema.episode_digest(other.records(more.start, more.start + row.length))


def _check_alike(a: Dataset, b: Dataset, *, any_teacher: bool, any_environment: bool) -> None:
    facts: dict[str, tuple[object, object]] = {
        "game": (a.manifest.game, b.manifest.game),
        "actions": (a.manifest.actions, b.manifest.actions),
    }
    if not any_teacher:
        facts["teacher"] = (a.manifest.teacher["digest"], b.manifest.teacher["digest"])
    if not any_environment:
        here, there = a.manifest.environment, b.manifest.environment
        facts |= {f"environment.{key}": (here.get(key), there.get(key)) for key in (here | there)}
    for name, (ours, theirs) in facts.items():
        if ours != theirs:
            kind = name.split(".")[0]
            remedy = f" (--any-{kind} joins them all the same)" if kind in ("teacher", "environment") else ""
            raise ValueError(f"{a.folder} has {name} {ours}, {b.folder} has {theirs}: they cannot be joined{remedy}")


def write(folder: Path, parts: Sequence[Part], made_by: Mapping[str, Any], licence: str | None = None) -> Iterator[Progress]:
    """Write the episodes of `parts`, in order, as a new dataset that names its parents; `made_by` is recorded.

    Its card names the `licence`, or that of its parents if they have one.
    """
    rows: list[EpisodeRow] = []
    first = parts[0][0].manifest
    writer = Writer(folder, first.actions)
    total = sum(dataset.episodes[index].length for dataset, indices in parts for index in indices)
    for dataset, indices in parts:
        start = sum(row.length for row in rows)
        for index in indices:
            row = dataset.episodes[index]
            rows.append(row._replace(start=start))
            start += row.length
        alike = writer.encodes_as(dataset)
        for begin, end in _runs(dataset, indices):
            at = begin
            while at < end:
                if alike and at % schema.SHARD == 0 and end - at >= schema.SHARD and writer.at_boundary:
                    writer.adopt(dataset, at // schema.SHARD)
                    at += schema.SHARD
                else:
                    stop = min(end, at + WINDOW - at % WINDOW)
                    writer.append(dataset.records(at, stop))
                    at = stop
                yield Progress(done=writer.steps, total=total, unit="states", metrics={})
    parents = [dataset.manifest for dataset, _ in parts]
    writer.finish(
        rows,
        game=first.game,
        teacher=first.teacher if len({p.teacher["digest"] for p in parents}) == 1 else SEVERAL,
        environment=first.environment if all(p.environment == first.environment for p in parents) else {"several": True},
        collection=_collection(parents, made_by),
        card=partial(card, licence=licence or licence_of(dataset for dataset, _ in parts)),
    )


def _runs(dataset: Dataset, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The steps of these episodes, neighbouring episodes in one piece."""
    begin = end = -1
    for index in indices:
        row = dataset.episodes[index]
        if row.start != end:
            if end > begin:
                yield begin, end
            begin = row.start
        end = row.start + row.length
    if end > begin:
        yield begin, end


def _collection(parents: Sequence[Manifest], made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What all parents share of how they were collected, what was done to them, and each parent's own story; of that parent's
    parents only the digests, or every generation would add all that came before.

    Without an `actor` the teacher acted, so one that they do not share is `SEVERAL` and not left out.
    """
    shared = {
        key: value
        for key, value in parents[0].collection.items()
        if key not in LINEAGE and all(parent.collection.get(key) == value for parent in parents)
    }
    if any(parent.collection.get("actor") != shared.get("actor") for parent in parents):
        shared["actor"] = SEVERAL
    stories = [
        {"digest": p.digest, "teacher": p.teacher["digest"], "environment": p.environment, "collection": _own(p.collection)}
        for p in parents
    ]
    return shared | {"made_by": dict(made_by), "parents": stories}


def _own(collection: Mapping[str, Any]) -> dict[str, Any]:
    """How a dataset was collected or made, its parents by their digests alone."""
    named = {"parents": [{"digest": parent["digest"]} for parent in collection["parents"]]} if "parents" in collection else {}
    return {**collection, **named}

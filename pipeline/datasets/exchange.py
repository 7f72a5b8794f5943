"""Datasets in other formats, and from them: Parquet, NumPy files, Minari. Nothing is lost on the way out.

Dimensions: T steps of an episode, A actions, C stacked frames, H W pixels (84).
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.datasets import schema
from pipeline.datasets.describe import UNTOLD, card
from pipeline.datasets.reader import WINDOW, Dataset, episode_of, parse_manifest, stack
from pipeline.datasets.schema import EpisodeRow, Flag, Records
from pipeline.datasets.writer import Writer
from pipeline.progress import Progress

DESCRIPTION: Final = "dataset.json"
"""Beside what is exported: the manifest, the episode table and the card."""
MANIFEST_KEY: Final = "pd_pipeline_manifest"
CARD_KEY: Final = "pd_pipeline_card"
DEPTH: Final = 4
NOT_RECORDED: Final = -1
"""The seed of an episode whose seed nobody kept."""


def to_parquet(dataset: Dataset, folder: Path) -> Iterator[Progress]:
    """`part-00000.parquet` and so on, a row per step: episode, step of the episode, and the arrays under their names.

    A frame is 7,056 bytes (84 x 84, row by row), `q` a list of A float32.
    """
    folder.mkdir(parents=True)
    columns: dict[str, pa.DataType] = {
        "episode": pa.int32(),
        "step": pa.int32(),
        "frame": pa.binary(84 * 84),
        "q": pa.list_(pa.float32(), dataset.manifest.actions),
        "action": pa.uint8(),
        "reward": pa.float32(),
        "flags": pa.uint8(),
    }
    table_schema = pa.schema(columns, metadata={MANIFEST_KEY: dataset.manifest.as_json()})
    for part, begin in enumerate(range(0, len(dataset), schema.SHARD)):
        end = min(begin + schema.SHARD, len(dataset))
        with pq.ParquetWriter(
            folder / f"part-{part:05}.parquet", table_schema, compression="zstd", use_dictionary=False
        ) as writer:
            for at in range(begin, end, WINDOW):
                stop = min(at + WINDOW, end)
                records = dataset.records(at, stop)
                step_N = np.arange(at, stop)
                episode_N, start_N = episode_of(dataset.episodes, step_N)
                values = [
                    pa.array(episode_N, pa.int32()),
                    pa.array(step_N - start_N, pa.int32()),
                    pa.FixedSizeBinaryArray.from_buffers(
                        table_schema.field("frame").type, records.steps, [None, pa.py_buffer(records.frame_NHW.data)]
                    ),
                    pa.FixedSizeListArray.from_arrays(pa.array(records.q_NA.reshape(-1)), dataset.manifest.actions),
                    *(pa.array(column) for column in (records.action_N, records.reward_N, records.flags_N)),
                ]
                writer.write_table(pa.Table.from_arrays(values, schema=table_schema))
                yield Progress(done=stop, total=len(dataset), unit="states", metrics={})
    _describe(dataset, folder)


def to_npz(dataset: Dataset, folder: Path) -> Iterator[Progress]:
    """`episode-00000.npz` and so on, one file per episode with the arrays under their names."""
    folder.mkdir(parents=True)
    for index, records in _episodes(dataset):
        np.savez_compressed(folder / f"episode-{index:05}.npz", allow_pickle=False, **records.by_name())
        yield _progress(dataset, index)
    _describe(dataset, folder)


def to_minari(dataset: Dataset, folder: Path, *, stacked: bool = True) -> Iterator[Progress]:
    """A Minari dataset (hdf5) at `folder`/GAME/DIGEST-v0: with MINARI_DATASETS_PATH=`folder`, `minari show GAME/DIGEST-v0`.

    Observations are states (C, H, W), or newest frames (H, W) unless `stacked`. `infos` has `q` and `flags` of each state.
    Minari wants an observation after the last step, which was not recorded: the last one stands there again, its `q` is NaN.
    """
    minari = _minari()
    from gymnasium.spaces import Box, Discrete
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    manifest = dataset.manifest
    name = f"{manifest.game.lower()}/{manifest.digest[:12]}-v0"
    place = folder.resolve() / name / "data"
    place.mkdir(parents=True)
    storage = MinariStorage.new(
        place,
        observation_space=Box(0, 255, (DEPTH, 84, 84) if stacked else (84, 84), np.uint8),
        action_space=Discrete(manifest.actions),
        jpeg_encoding=False,
    )
    for index, records in _episodes(dataset):
        row = dataset.episodes[index]
        step_T = np.minimum(np.arange(records.steps + 1), records.steps - 1)
        observations = stack(records.frame_NHW, step_T, np.zeros_like(step_T), DEPTH) if stacked else records.frame_NHW[step_T]
        ends_T = np.arange(records.steps) == records.steps - 1
        buffer = EpisodeBuffer(
            seed=row.seed,
            observations=observations,
            actions=records.action_N.astype(np.int64),
            rewards=records.reward_N,
            terminations=ends_T & row.terminated,
            truncations=ends_T & row.truncated,
            infos={
                "q": np.concatenate([records.q_NA, np.full((1, manifest.actions), np.nan, np.float32)]),
                "flags": np.append(records.flags_N, np.uint8(0)),
            },
        )
        storage.update_episodes([buffer])
        yield _progress(dataset, index)
    storage.update_metadata(
        {
            "dataset_id": name,
            "minari_version": minari.__version__,
            "algorithm_name": str(manifest.teacher.get("algorithm", "unknown")),
            "description": f"{manifest.states:,} states of {manifest.game} with a teacher's Q-values",
            MANIFEST_KEY: manifest.as_json(),
            CARD_KEY: dataset.card(),
        }
    )


EXPORTS: Final[Mapping[str, Callable[..., Iterator[Progress]]]] = {"parquet": to_parquet, "npz": to_npz, "minari": to_minari}


def from_minari(
    source: Path, folder: Path, *, game: str | None, labels: str = "q", licence: str | None = None
) -> Iterator[Progress]:
    """Write the dataset at `folder` from the Minari dataset at `source`; `infos[labels]` holds a number per action and state.

    Observations are single frames (H, W) or stacks (C, H, W) or (H, W, C) of an episode's last four, black before its start.
    What this project exported comes back with its provenance, digest and card; of any other, `game` must be told, and what
    Minari does not record (random actions, lives, the environment's arguments) is not claimed. ValueError says where it does
    not fit.
    """
    storage, actions, metadata, total = _open_minari(source)
    identity = str(metadata.get("dataset_id", source.name))
    origin = parse_manifest(metadata[MANIFEST_KEY], f"{source}: {MANIFEST_KEY}") if MANIFEST_KEY in metadata else None
    if origin is None and game is None:
        raise ValueError(f"{source} does not tell its game: add --game NAME")
    if origin is not None and game not in (None, origin.game):
        raise ValueError(f"{source} is of {origin.game}, not of {game}: leave out --game")
    writer = Writer(folder, actions)
    rows: list[EpisodeRow] = []
    for index in range(total):
        where = f"{source}: episode {index}"
        with _as_minari(where):
            (episode,), (note,) = storage.get_episodes([index]), storage.get_episode_metadata([index])
            seed = NOT_RECORDED if note.get("seed") is None else int(np.int64(note["seed"]))
        records = _records(where, episode, actions, labels, ours=origin is not None)
        flags = int(records.flags_N[-1])
        terminated, truncated = bool(flags & Flag.TERMINATED), bool(flags & Flag.TRUNCATED)
        rows.append(
            EpisodeRow(
                seed=seed,
                start=writer.steps,
                length=records.steps,
                episode_return=float(records.reward_N.sum(dtype=np.float64)),
                terminated=terminated,
                truncated=truncated,
                complete=terminated or truncated,
                sha256=schema.episode_digest(records),
            )
        )
        writer.append(records)
        yield Progress(done=index + 1, total=total, unit="episodes", metrics={})
    if not rows:
        raise ValueError(f"{source} has no episodes")
    if origin is not None:
        told = {"teacher": origin.teacher, "environment": origin.environment, "collection": origin.collection}
    else:
        teacher = {"digest": f"unknown, of Minari's {identity}", "algorithm": str(metadata.get("algorithm_name", "unknown"))}
        environment = {"game": game, "env_spec": metadata.get("env_spec")}
        told = {
            "teacher": teacher,
            "environment": environment,
            "collection": {
                "made_by": {"operation": "import", "from": "minari", "dataset": identity, "labels": labels},
                "parents": [],
            },
        }
    exported = str(metadata.get(CARD_KEY))
    intact = origin is not None and hashlib.sha256(exported.encode()).hexdigest() == origin.files.get(schema.CARD)
    manifest = writer.finish(
        rows,
        game=origin.game if origin else str(game),
        card=(lambda *_: exported) if intact and licence is None else partial(card, licence=licence or UNTOLD),
        **told,
    )
    if origin is not None and manifest.digest != origin.digest:
        raise ValueError(f"{source} was altered since it was exported: it is {manifest.digest[:12]}, not {origin.digest[:12]}")


@contextmanager
def _as_minari(where: str) -> Iterator[None]:
    """ValueError that tells where a stranger's file is not what Minari and h5py, which raise many types, take it for."""
    try:
        yield
    except Exception as error:
        fault = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{where} is not as Minari writes it ({type(error).__name__}: {fault}): fetch it, or export it, again"
        ) from None


def _open_minari(source: Path) -> tuple[Any, int, dict[str, Any], int]:
    """The storage, the number of actions, the metadata and the number of episodes of a Minari dataset. ValueError if it is not
    one that fits.
    """
    _minari()
    from gymnasium.spaces import Box, Discrete
    from minari.dataset.minari_storage import MinariStorage, is_image_space

    place = source / "data" if (source / "data").is_dir() else source
    with _as_minari(f"{source}: its metadata"):
        metadata = dict(MinariStorage.read_raw_metadata(place))
    if missing := [name for name in ("observation_space", "action_space") if name not in metadata]:
        # Minari would make the environment that the file names, that is, run what a stranger wrote.
        raise ValueError(f"{source}: its metadata lacks {missing[0]}: update it with a current Minari")
    for path in place.rglob("*.hdf5"):
        _check_contained(path)
    with _as_minari(f"{source}: its metadata"):
        storage = MinariStorage.read(place)
        total = operator.index(metadata["total_episodes"])
    seen, acts = storage.observation_space, storage.action_space
    if not isinstance(seen, Box) or seen.dtype != np.uint8:
        raise ValueError(f"{source}: observations are {seen}, not uint8 frames")
    if storage.jpeg_encoding and is_image_space(seen):
        raise ValueError(f"{source}: frames are kept as JPEG, which alters them: record it anew with jpeg_encoding=False")
    if not isinstance(acts, Discrete) or acts.start != 0:
        raise ValueError(f"{source}: actions are {acts}, not Discrete(n) from 0")
    return storage, int(acts.n), metadata, total


def _check_contained(path: Path) -> None:
    """ValueError if an HDF5 file reaches for others: a stranger's could bring any file of this machine into a dataset."""
    import h5py

    def walk(group: Any) -> Iterator[str]:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield f"{group.name}/{name} is a link"
            elif isinstance(held := group[name], h5py.Group):
                yield from walk(held)
            elif held.external or held.is_virtual:
                yield f"{held.name} lies in another file"

    with _as_minari(str(path)), h5py.File(path, "r") as file:
        found = next(walk(file), None)
    if found is not None:
        raise ValueError(f"{path}: {found}: do not trust it")


def _records(where: str, episode: Mapping[str, Any], actions: int, labels: str, *, ours: bool) -> Records:
    """A Minari episode's records, with its `flags` if they are `ours`; ValueError says what of it does not fit."""
    with _as_minari(where):
        reward_T = np.asarray(episode["rewards"], dtype=np.float32)
        terminated_T, truncated_T = (np.asarray(episode[name], dtype=np.bool_) for name in ("terminations", "truncations"))
    steps = len(reward_T)
    if steps == 0:
        raise ValueError(f"{where} has no steps")
    if not (steps,) == reward_T.shape == terminated_T.shape == truncated_T.shape:
        shapes = f"{reward_T.shape}, {terminated_T.shape} and {truncated_T.shape}"
        raise ValueError(f"{where}: rewards, terminations and truncations are {shapes}, not one of each for each step")
    infos = episode["infos"] or {}
    if labels not in infos:
        held = ", ".join(sorted(infos)) or "nothing"
        raise ValueError(f"{where}: infos has no {labels!r}, it has {held}: name the Q-values or logits with --labels")
    with _as_minari(where):
        q_TA, action_T, seen = (np.asarray(array) for array in (infos[labels], episode["actions"], episode["observations"]))
        q_TA, seen = q_TA[:steps], seen[:steps]
    if q_TA.shape != (steps, actions) or not np.issubdtype(q_TA.dtype, np.floating):
        raise ValueError(f"{where}: infos[{labels!r}] is {q_TA.dtype} {q_TA.shape}, not a number for each of {actions} actions")
    whole = action_T.shape == (steps,) and np.issubdtype(action_T.dtype, np.integer)
    if not whole or action_T.min() < 0 or action_T.max() >= actions:
        raise ValueError(f"{where}: actions are {action_T.dtype} {action_T.shape}, not {steps} numbers from 0 to {actions - 1}")
    flags_T: npt.NDArray[Any]
    if ours and "flags" in infos:
        flags_T = np.asarray(infos["flags"])[:steps]
    else:
        flags_T = terminated_T * Flag.TERMINATED | truncated_T * Flag.TRUNCATED
        flags_T[0] |= Flag.EPISODE_START
    if flags_T.shape != (steps,):
        raise ValueError(f"{where}: its flags are {flags_T.shape}, not one for each of {steps} steps")
    return Records(
        frame_NHW=_frames(where, seen),
        q_NA=q_TA.astype(np.float32),
        action_N=action_T.astype(np.uint8),
        reward_N=reward_T,
        flags_N=flags_T.astype(np.uint8),
    )


def _frames(where: str, seen: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The newest frame of each observation; ValueError where a stack is not the last four frames."""
    match seen.shape:
        case (_, 84, 84):
            return seen
        case (_, 84, 84, 1):
            return seen[..., 0]
        case (_, 4, 84, 84):
            state_TCHW = seen
        case (_, 84, 84, 4):
            state_TCHW = seen.transpose(0, 3, 1, 2)
        case _:
            raise ValueError(f"{where}: observations are {seen.shape[1:]}, not 84 x 84 frames or stacks of four")
    frame_THW = np.ascontiguousarray(state_TCHW[:, -1])
    step_T = np.arange(len(seen))
    other_T = (stack(frame_THW, step_T, np.zeros_like(step_T), DEPTH) != state_TCHW).any(axis=(1, 2, 3))
    if other_T.any():
        raise ValueError(
            f"{where}, step {other_T.argmax():,}: the state is not the episode's last four frames, black before its start: "
            f"stack frames with padding_type='zero', after frame skipping"
        )
    return frame_THW


def _episodes(dataset: Dataset) -> Iterator[tuple[int, Records]]:
    for index, records in dataset.by_episode():
        if isinstance(records, str):
            raise ValueError(records)
        yield index, records


def _progress(dataset: Dataset, index: int) -> Progress:
    row = dataset.episodes[index]
    return Progress(done=row.start + row.length, total=len(dataset), unit="states", metrics={})


def _describe(dataset: Dataset, folder: Path) -> None:
    episodes = [row._asdict() for row in dataset.episodes]
    facts = {"manifest": json.loads(dataset.manifest.as_json()), "episodes": episodes, "card": dataset.card()}
    (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2) + "\n")


def _minari() -> Any:
    try:
        import minari
        import minari.dataset._storages.hdf5_storage
    except ImportError as error:
        raise ValueError(f"Minari is not installed ({error}): pip install -e '.[minari]' in the repository") from None
    return minari

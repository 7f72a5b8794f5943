"""Out to other formats and back: nothing is lost, and what does not fit is refused."""

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari import MinariDataset
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from pipeline.datasets import edit, exchange, schema
from pipeline.datasets.reader import Dataset, open_dataset, stack
from pipeline.datasets.schema import Flag, Records
from pipeline.datasets.validate import validate
from tests.datasets.test_format import noise, small_shards
from tests.fakes import corridor_dataset, write_dataset

__all__ = ["small_shards"]


@pytest.fixture
def source(small_shards: None, tmp_path: Path) -> Dataset:
    """Five episodes of 4 to 20 steps over several shards."""
    write_dataset(tmp_path / "source", [noise(4 * (i + 1), i) for i in range(5)])
    return open_dataset(tmp_path / "source")


def imported(folder: Path, out: Path, **options: Any) -> Dataset:
    *_, last = exchange.from_minari(folder, out, **({"game": None} | options))
    assert last.done == last.total
    return open_dataset(out, check_files=True)


def digests(episodes: list[Records]) -> list[str]:
    return [schema.episode_digest(records) for records in episodes]


def test_parquet_holds_every_byte(source: Dataset, tmp_path: Path) -> None:
    *_, last = exchange.to_parquet(source, tmp_path / "out")
    assert last.done == len(source)
    table = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    episodes = []
    for index in range(len(source.episodes)):
        rows = [row for row in table.to_pylist() if row["episode"] == index]
        assert [row["step"] for row in rows] == list(range(source.episodes[index].length))
        episodes.append(
            Records(
                frame_NHW=np.stack([np.frombuffer(row["frame"], np.uint8).reshape(84, 84) for row in rows]),
                q_NA=np.array([row["q"] for row in rows], np.float32),
                action_N=np.array([row["action"] for row in rows], np.uint8),
                reward_N=np.array([row["reward"] for row in rows], np.float32),
                flags_N=np.array([row["flags"] for row in rows], np.uint8),
            )
        )
    assert digests(episodes) == [row.sha256 for row in source.episodes]
    told = json.loads((tmp_path / "out" / exchange.DESCRIPTION).read_text())
    assert told["card"] == source.card()
    assert told["manifest"]["digest"] == source.manifest.digest
    assert [row["sha256"] for row in told["episodes"]] == digests(episodes)


def test_npz_holds_every_byte(source: Dataset, tmp_path: Path) -> None:
    list(exchange.to_npz(source, tmp_path / "out"))
    files = sorted((tmp_path / "out").glob("*.npz"))
    loaded = [np.load(path, allow_pickle=False) for path in files]
    assert digests([Records(*(arrays[name] for name in schema.ARRAYS)) for arrays in loaded]) == [
        row.sha256 for row in source.episodes
    ]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), stacked=st.booleans())
def test_minari_and_back_is_the_same_dataset(
    small_shards: None, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], stacked: bool
) -> None:
    folder = tmp_path_factory.mktemp("round")
    written = write_dataset(folder / "source", [noise(length, i) for i, length in enumerate(lengths)])
    list(exchange.to_minari(open_dataset(folder / "source"), folder / "out", stacked=stacked))
    (place,) = (folder / "out" / "corridor").iterdir()
    again = imported(place, folder / "again").manifest
    assert (again.digest, again.files) == (written.digest, written.files)


def test_minari_keeps_the_card(source: Dataset, tmp_path: Path) -> None:
    *_, _ = edit.write(tmp_path / "free", [(source, range(5))], {"operation": "test"}, "cc-by-4.0")
    list(exchange.to_minari(open_dataset(tmp_path / "free"), tmp_path / "out"))
    (place,) = (tmp_path / "out" / "corridor").iterdir()
    again = imported(place, tmp_path / "again")
    assert again.manifest.files == open_dataset(tmp_path / "free").manifest.files
    assert "license: mit\n" in imported(place, tmp_path / "other", licence="mit").card()
    metadata = place / "data/metadata.json"
    metadata.write_text(metadata.read_text().replace("license: cc-by-4.0", "license: mit"))
    altered = imported(place, tmp_path / "altered")
    assert altered.manifest.digest == again.manifest.digest
    assert "license: other\n" in altered.card()


def test_minari_reads_what_was_exported(source: Dataset, tmp_path: Path) -> None:
    list(exchange.to_minari(source, tmp_path / "out"))
    (place,) = (tmp_path / "out" / "corridor").iterdir()
    theirs = MinariDataset(place / "data")
    assert (len(theirs), theirs.total_steps) == (len(source.episodes), len(source))
    row, episode = source.episodes[2], theirs[2]
    steps = range(row.start, row.start + row.length)
    assert (episode.observations[:-1] == source.stacks(steps)).all()
    assert (episode.infos["q"][:-1] == source.arrays["q"][row.start : row.start + row.length]).all()
    assert np.isnan(episode.infos["q"][-1]).all()
    assert (episode.terminations.tolist()[-1], episode.rewards.sum()) == (True, np.float32(row.episode_return))


def foreign(folder: Path, *, channels_last: bool = False, pad: bool = False, jpeg: bool = False, **changes: Any) -> Path:
    """A Minari dataset of somebody else's: no flags, no provenance, logits in float64, the last observation too."""
    made = corridor_dataset(folder.with_name("corridor"), 3)
    data = open_dataset(folder.with_name("corridor"))
    shape = (84, 84) if jpeg else (84, 84, 4) if channels_last else (4, 84, 84)
    folder.mkdir()
    storage = MinariStorage.new(
        folder, observation_space=Box(0, 255, shape, np.uint8), action_space=Discrete(made.actions), jpeg_encoding=jpeg
    )
    for index in range(len(data.episodes)):
        records = data.episode(index)
        step_T = np.arange(records.steps)
        state_TCHW = stack(records.frame_NHW, step_T, np.zeros_like(step_T), 4)
        if pad:
            state_TCHW[0] = state_TCHW[0, -1]
        seen = state_TCHW[:, -1] if jpeg else state_TCHW.transpose(0, 2, 3, 1) if channels_last else state_TCHW
        ends = step_T == records.steps - 1
        fields = {
            "observations": np.concatenate([seen, seen[-1:]]),
            "actions": records.action_N.astype(np.int64),
            "rewards": records.reward_N.astype(np.float64),
            "terminations": ends,
            "truncations": np.zeros_like(ends),
            "infos": {"logits": np.concatenate([records.q_NA, records.q_NA[-1:]]).astype(np.float64)},
        }
        storage.update_episodes([EpisodeBuffer(**(fields | changes))])
    storage.update_metadata({"dataset_id": "corridor/others-v0", "minari_version": "0.5.0"})
    return folder


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_foreign_dataset_is_imported_without_claims(tmp_path: Path, channels_last: bool) -> None:
    folder = foreign(tmp_path / "theirs", channels_last=channels_last)
    made = imported(folder, tmp_path / "made", game="Corridor", labels="logits")
    ours = open_dataset(tmp_path / "corridor")
    assert [row.sha256 for row in made.episodes] == [row.sha256 for row in ours.episodes]
    assert {row.seed for row in made.episodes} == {exchange.NOT_RECORDED}
    assert made.manifest.teacher["digest"] == "unknown, of Minari's corridor/others-v0"
    assert made.manifest.collection["made_by"]["labels"] == "logits"
    assert made.read("flags", 0, 1).tolist() == [Flag.EPISODE_START]
    found: list[str] = []
    list(validate(made, found))
    assert found == []


@pytest.mark.parametrize(
    ("build", "told", "said"),
    [
        ({}, {"labels": "q"}, "episode 0: infos has no 'q', it has logits: name the Q-values or logits with --labels"),
        ({}, {"game": None}, "does not tell its game: add --game NAME"),
        ({"pad": True}, {}, "episode 0, step 0: the state is not the episode's last four frames"),
        ({"jpeg": True}, {}, "kept as JPEG, which alters them"),
        ({"infos": {"logits": np.zeros((60, 3))}}, {}, "episode 0: infos.'logits'. is float64 .*, not a number for each of 2"),
        ({"actions": np.full(60, 2)}, {}, r"episode 0: actions are int64 \(60,\), not .* numbers from 0 to 1"),
        ({"actions": np.zeros(6)}, {}, r"actions are float64 \(6,\), not 6 numbers"),
        ({"rewards": np.zeros((7, 2))}, {}, r"rewards, terminations and truncations are \(7, 2\), "),
        ({"infos": None}, {}, "infos has no 'logits', it has nothing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, build: Any, told: Any, said: str) -> None:
    folder = foreign(tmp_path / "theirs", **build)
    with pytest.raises(ValueError, match=said):
        imported(folder, tmp_path / "made", **({"game": "Corridor", "labels": "logits"} | told))


def test_an_altered_export_is_refused(source: Dataset, tmp_path: Path) -> None:
    list(exchange.to_minari(source, tmp_path / "out"))
    (place,) = (tmp_path / "out" / "corridor").iterdir()
    with pytest.raises(ValueError, match="is of Corridor, not of Pong"):
        imported(place, tmp_path / "made", game="Pong")
    with h5py.File(place / "data/main_data.hdf5", "a") as file:
        file["episode_1/infos/q"][0, 0] += 1
    with pytest.raises(ValueError, match="was altered since it was exported"):
        imported(place, tmp_path / "made")


@pytest.mark.parametrize("reach", ["link", "storage"])
def test_no_other_file_is_read(tmp_path: Path, reach: str) -> None:
    folder = foreign(tmp_path / "theirs")
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        steps = len(file["episode_0/rewards"])
        del file["episode_0/rewards"]
        if reach == "link":
            file["episode_0/rewards"] = h5py.ExternalLink("other.hdf5", "rewards")
        else:
            file.create_dataset("episode_0/rewards", shape=(steps,), dtype="u1", external=[("/etc/passwd", 0, steps)])
    with pytest.raises(ValueError, match=r"rewards (is a link|lies in another file): do not trust it"):
        imported(folder, tmp_path / "made", game="Corridor", labels="logits")


def test_a_relative_folder_will_do(source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    list(exchange.to_minari(source, Path("some/where")))
    assert len(list(Path("some/where/corridor").iterdir())) == 1


@pytest.mark.parametrize(
    ("told", "dropped", "said"),
    [
        ({"data_format": None}, None, "its metadata is not as Minari writes it"),
        ({"action_space": 3}, None, "its metadata is not as Minari writes it (AssertionError: )"),
        ({"total_episodes": 4}, None, "episode 3 is not as Minari writes it (KeyError: "),
        ({"total_episodes": "all"}, None, "its metadata is not as Minari writes it (TypeError: "),
        ({}, "rewards", "episode 0 is not as Minari writes it (KeyError: "),
        ({}, "terminations", "episode 0 is not as Minari writes it (KeyError: "),
        ({}, "", "main_data.hdf5 is not as Minari writes it (OSError: "),
    ],
)
def test_what_minari_did_not_write_is_one_line(tmp_path: Path, told: dict[str, Any], dropped: str | None, said: str) -> None:
    folder = foreign(tmp_path / "theirs")
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    if dropped:
        with h5py.File(folder / "main_data.hdf5", "a") as file:
            del file[f"episode_0/{dropped}"]
    elif dropped is not None:
        (folder / "main_data.hdf5").write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder))}.*{re.escape(said)}") as caught:
        imported(folder, tmp_path / "made", game="Corridor", labels="logits")
    assert "\n" not in str(caught.value)


def test_no_environment_is_made_for_a_stranger(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "theirs")
    path = folder / "metadata.json"
    told = json.loads(path.read_text())
    del told["observation_space"]
    path.write_text(json.dumps(told | {"env_spec": json.dumps({"id": "X-v0", "entry_point": "os:system"})}))
    with pytest.raises(ValueError, match="lacks observation_space"):
        imported(folder, tmp_path / "made", game="Corridor", labels="logits")

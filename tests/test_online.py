"""A student follows a teacher that learns real Breakout: live, from its record, and interrupted, with one result."""

import csv
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from distributed import Client

from pipeline.agents.checkpoints import load_agent
from pipeline.collect import Collection
from pipeline.datasets.reader import open_dataset
from pipeline.distill.offline import Student
from pipeline.evaluate import play
from pipeline.report.online import RETURNS
from stages import collect, distill_online, history, score_online
from stages.cli import main
from stages.current import earlier_following, made_with
from stages.params import load_project
from stages.plan import jobs
from stages.publish import replace_folder
from tests.fakes import blocks_of_four, edited_params
from tests.rl.test_dqn import CONFIG as DQN

pytestmark = pytest.mark.end_to_end


def invoke(project: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *arguments])


def call(project: Path, *arguments: str) -> str:
    result = invoke(project, *arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def rows(project: Path) -> list[dict[str, str]]:
    with (project / "data/online/Breakout-0/curve.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def one_cluster(one_worker: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The suite's worker serves every collection: to start one takes longer than all else here."""

    @contextmanager
    def cluster(scheduler: str | None, workers: int) -> Iterator[Client]:
        del scheduler, workers
        yield one_worker

    for stage in (collect, distill_online):
        monkeypatch.setattr(stage, "cluster", cluster)
    with blocks_of_four():
        yield


def project(folder: Path) -> Path:
    """params.yaml of a history of three points and a student of a few updates at each."""
    with edited_params(folder) as raw:
        raw["environment"]["max_episode_frames"] = 200
        raw["teacher_presets"]["pqn-atari"]["pqn"] |= {"envs": 2, "horizon": 32, "minibatch": 32}
        raw["history"] = {
            "Breakout": {"preset": "pqn-atari", "network": "net3", "steps": 192, "every": 64, "select_episodes": 2, "recipe": 1}
        }
        followed = {"states": 150, "epsilon": 0.05, "window": 2, "score_episodes": 2, "final_states": 200, "final_updates": 8}
        raw["online"] = {"Breakout": {"student": "kl", **followed, "seeds": [0], "recipe": 1}}
        raw["students"]["kl"] = (
            raw["students"]["kl-net3"] | {"updates": 4}
            if "kl-net3" in raw["students"]
            else {"loss": "kl", "temperature": 0.01, "network": "net3", "preset": "fast", "updates": 4, "recipe": 1}
        )
        raw["presets"]["fast"] |= {
            "batch": 32,
            "validate_every": 4,
            "validation_states": 64,
            "warmup_updates": 0,
            "schedule": "constant",
        }
        raw["evaluation"] |= {"epsilon": 0.5, "episodes": 2, "width": 1}
        raw["grid"] = {}
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded history."""
    folder = project(tmp_path_factory.mktemp("recorded"))
    call(folder, "train-history", "--game", "breakout")
    return folder


@pytest.fixture
def followed(recorded: Path) -> Path:
    """The same, and who followed it."""
    if not (recorded / "data/online/Breakout-0").exists():
        call(recorded, "distill-online", "--game", "Breakout", "--replay")
    return recorded


def test_the_student_follows_the_record(recorded: Path) -> None:
    points = json.loads((recorded / "data/history/Breakout-0/history.json").read_text())["points"]
    assert [p["steps"] for p in points] == [64, 128, 192]
    call(recorded, "distill-online", "--game", "Breakout", "--replay")
    told = rows(recorded)
    assert [int(row["steps"]) for row in told] == [64, 128, 192]
    with (recorded / "data/versions/Breakout-0/index.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    assert len(index) == 4
    for number, (row, labelled) in enumerate(zip([*told, None], index, strict=True)):
        best = max(points[: number + 1], key=lambda p: p["selected"])
        assert (labelled["steps"], labelled["return"]) == (str(best["steps"]), str(best["selected"]))
        version = open_dataset(recorded / f"data/versions/Breakout-0/{labelled['version']}", check_files=True).manifest
        assert (version.digest, version.states) == (labelled["dataset_digest"], 150 if row else 200)
        assert version.teacher["digest"] == labelled["snapshot_digest"] == best["digest"]
        if row:
            assert (row["best_return"], row["labelled_by"]) == (told[best["number"]]["teacher_return"], best["digest"])
            assert (row["dataset"], row["snapshot"]) == (version.digest, points[number]["digest"])
    with (recorded / "data/online/Breakout-0/returns.csv").open(newline="") as file:
        episodes = list(csv.DictReader(file))
    assert len(episodes) == 3 * 2
    for row in told:
        for who in ("teacher", "student"):
            returns = [float(e[who]) for e in episodes if e["point"] == row["point"]]
            assert float(row[f"{who}_return"]) == sum(returns) / 2
    assert json.loads((recorded / "data/online/Breakout-0/card.json").read_text())["updates"] == 3 * 4 + 8
    assert not (recorded / "data/versions/Breakout-0/.work").exists()


def test_the_student_goes_on_from_point_to_point_and_learns_from_the_bests_last_versions(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(Student):
        """Remembers what it began with and learned from."""

        def __init__(self, config: Any, objective: Any, spec: Any, sources: Any, *more: Any, start: Any, **others: Any) -> None:
            self.began = start and {name: weights.clone() for name, weights in start.state_dict().items()}
            self.learned = [part.manifest.digest for part in sources[0].parts]
            self.optimizer_began: Any = None
            self.shrink = others["shrink"]
            super().__init__(config, objective, spec, sources, *more, start=start, **others)
            seen.append(self)

        def load_optimizer(self, state: Any) -> None:
            self.optimizer_began = state
            super().load_optimizer(state)

    seen: list[Watched] = []
    monkeypatch.setattr(distill_online, "Student", Watched)
    for made in ("data/online", ".work/distill-online"):
        shutil.rmtree(recorded / made, ignore_errors=True)
    call(recorded, "distill-online", "--game", "Breakout", "--replay")
    with (recorded / "data/versions/Breakout-0/index.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    assert len(seen) == len(index) == 4
    for number, student in enumerate(seen):
        same = [row["dataset_digest"] for row in index[: number + 1] if row["snapshot"] == index[number]["snapshot"]]
        assert student.learned == same[-2:]  # the window
        before = seen[number - 1] if number else None
        assert (student.began is None) == (student.optimizer_began is None) == (before is None)
        if before is not None:
            assert student.began.keys() == before.network.state_dict().keys()
            assert all(torch.equal(weights, student.began[name]) for name, weights in before.network.state_dict().items())
    assert max(len(student.learned) for student in seen) == 2
    assert {student.shrink for student in seen} == {1.0}
    published = load_agent(recorded / "data/online/Breakout-0", torch.device("cpu")).network.state_dict()
    assert all(torch.equal(weights, published[name]) for name, weights in seen[-1].network.state_dict().items())

    seen.clear()
    folder = project(tmp_path)
    shutil.copytree(recorded / "data/history", folder / "data/history")
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["online"]["Breakout"]["shrink"] = 0.5
    call(folder, "distill-online", "--game", "Breakout", "--replay")
    labelled = [row["snapshot"] for row in index]
    for number, student in enumerate(seen):
        new = labelled.index(labelled[number]) == number
        assert student.shrink == (0.5 if new else 1.0)
        assert (student.optimizer_began is None) == new
    assert json.loads((folder / "data/online/Breakout-0/card.json").read_text())["following"]["shrink"] == 0.5
    with edited_params(folder, folder / "params.yaml") as raw:
        del raw["online"]["Breakout"]["shrink"]
    assert earlier_following(*load_project(folder / "params.yaml"), "Breakout", 0) == "shrink 0.5"
    with edited_params(recorded, recorded / "params.yaml") as raw:
        raw["online"]["Breakout"]["shrink"] = 0.5
    assert earlier_following(*load_project(recorded / "params.yaml"), "Breakout", 0) == "shrink not set"
    with edited_params(recorded, recorded / "params.yaml") as raw:
        del raw["online"]["Breakout"]["shrink"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many episodes are played at each time, from now on."""
    played: list[int] = []

    def counting(world: Any, policy: Any, seeds: Any) -> Any:
        played.append(len(seeds))
        return play(world, policy, seeds)

    monkeypatch.setattr("stages.contest.play", counting)
    return played


def test_whoever_follows_the_same_record_plays_none_of_its_teachers_episodes_again(
    followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tmp_path)
    for made in ("data/history", ".work/follow"):
        shutil.copytree(followed / made, folder / made)
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["students"]["kl"]["updates"] = 5
    played = counted(monkeypatch)
    call(folder, "distill-online", "--game", "Breakout", "--replay")
    assert played == [2, 2, 2]  # the student's
    taught = [[row["teacher_return"] for row in rows(project)] for project in (folder, followed)]
    assert taught[0] == taught[1]


def test_episodes_of_another_protocol_are_played(followed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, params = load_project(followed / "params.yaml")
    record = history.History(layout.history("Breakout-0"))
    agents = record.agent(record.points[0]), layout.followers("Breakout-0") / "000"
    other = params.model_copy(update={"evaluation": params.evaluation.model_copy(update={"epsilon": 0.25})})
    shorter = params.model_copy(update={"environment": replace(params.environment, max_episode_frames=100)})
    played = counted(monkeypatch)
    for asked, lacking in ((params, []), (other, [2, 2]), (shorter, [2, 2]), (other, [])):
        played.clear()
        for known, anew in (([], lacking), ([{"point": 0, "seed": 500_000_000, "teacher": -1.0, "student": -2.0}], [])):
            told = score_online.episodes(layout, asked, "Breakout", 0, record.points[0], *agents, known, "cpu")
            assert (len(told), played) == (2, anew)
            assert all(row in told for row in known)  # what has been published stays
            played.clear()


@pytest.mark.parametrize(("selected", "lessons"), [((2.0, 1.0, 3.0), [0, 2]), ((3.0, 1.0, 2.0), [0])])
def test_a_student_that_rests_learns_where_the_best_is_new(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selected: tuple[float, ...], lessons: list[int]
) -> None:
    folder = project(tmp_path)
    shutil.copytree(recorded / "data/history", folder / "data/history")
    path = folder / "data/history/Breakout-0/history.json"
    told = json.loads(path.read_text())
    told["points"] = [point | {"selected": chosen} for point, chosen in zip(told["points"], selected, strict=True)]
    path.write_text(json.dumps(told))
    assert [point.number for point in history.History(path.parent).bests()] == lessons
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["online"]["Breakout"]["rests"] = True
    call(folder, "distill-online", "--game", "Breakout", "--replay")
    with (folder / "data/versions/Breakout-0/index.csv").open(newline="") as file:
        index = {int(row["version"]): row["dataset_digest"] for row in csv.DictReader(file)}
    assert [*index] == [*lessons, 3]
    assert [row["dataset"] for row in rows(folder)] == [index.get(number, "") for number in range(3)]
    assert len({row["follower"] for row in rows(folder)}) == len(lessons)
    card = json.loads((folder / "data/online/Breakout-0/card.json").read_text())
    assert (card["versions"], card["updates"]) == (len(lessons) + 1, 4 * len(lessons) + 8)
    played = counted(monkeypatch)
    for episodes in (2, 3):  # of a student that rests nobody plays them again
        with edited_params(folder, folder / "params.yaml") as raw:
            raw["online"]["Breakout"]["score_episodes"] = episodes
        found = call(folder, "distill-online", "--game", "Breakout", "--replay")
        assert ("is there already" in found) == (episodes == 2)
        with (folder / "data/online/Breakout-0" / RETURNS).open(newline="") as file:
            returns = [(int(row["point"]), row["student"]) for row in csv.DictReader(file)]
        assert len(returns) == 3 * episodes
        student = [[value for at, value in returns if at == number] for number in range(3)]
        assert student[1] == student[0]
        assert (student[2] == student[1]) or 2 in lessons
    assert played == [1] * (3 + len(lessons))
    assert earlier_following(*load_project(folder / "params.yaml"), "Breakout", 0) == ""


def test_the_report_shows_who_followed_the_record_that_is_there(followed: Path) -> None:
    assert "evaluate online/Breakout-0" in invoke(followed, "report").output
    assert "no student of the params' grid has been evaluated yet" in invoke(followed, "report", "--partial").output
    call(followed, "evaluate", "online/Breakout-0", "history/Breakout-0/best", "history/Breakout-0/last")
    assert "evaluate random/Breakout" in invoke(followed, "report").output
    call(followed, "evaluate", "random/Breakout")
    with edited_params(followed, followed / "params.yaml") as raw:
        raw["evaluation"]["episodes"] = 3
    call(followed, "evaluate", "online/Breakout-0")
    with edited_params(followed, followed / "params.yaml") as raw:
        raw["evaluation"]["episodes"] = 2
    told = "online/Breakout-0 has played 3 episodes and history/Breakout-0/best 2"
    assert told in invoke(followed, "report").output
    (followed / "data/episodes/online/Breakout-0.parquet").unlink()
    call(followed, "evaluate", "online/Breakout-0")
    call(followed, "report", "--paper", str(followed / "online.md"))
    assert "Following a teacher that is still learning" in (followed / "data/report/index.html").read_text()
    assert "| Breakout | student | 1 | " in (followed / "online.md").read_text()
    with edited_params(followed, followed / "params.yaml") as raw:
        raw["online"]["Breakout"]["score_episodes"] = 3
    assert "than params.yaml has now: Breakout-0 (score_episodes 2)" in invoke(followed, "report").output
    call(followed, "report", "--partial", "--paper", str(followed / "online.md"))
    assert (
        "scored by earlier settings (score_episodes 2) and not made anew yet: Breakout-0."
        in (followed / "online.md").read_text()
    )
    asked = [line for line in (followed / "online.md").read_text().splitlines() if line.startswith("| Breakout: ")]
    assert [line.endswith("| open |") for line in asked] == [True, True]
    with edited_params(followed, followed / "params.yaml") as raw:
        raw["online"]["Breakout"]["score_episodes"] = 2
    scores = followed / "data/scores/history/Breakout-0/best.json"
    before = scores.read_text()
    scores.write_text(before.replace(json.loads(before)["agent_digest"], "0" * 64))
    assert (
        "history/Breakout-0/best was scored before it, the seeds or the protocol changed: run"
        in invoke(followed, "report").output
    )
    told = "left out, Breakout-0: history/Breakout-0/best was scored before it, the seeds or the protocol changed"
    assert told in invoke(followed, "report", "--partial").output
    for which in ("best", "last"):  # a history that was made anew or went on, and is scored: not who was followed
        scores.write_text(before)
        card, scores = (
            followed / f"data/history/Breakout-0/{which}/card.json",
            followed / f"data/scores/history/Breakout-0/{which}.json",
        )
        kept, before = card.read_text(), scores.read_text()
        for path in (card, scores):
            path.write_text(path.read_text().replace(json.loads(kept)["digest"], "0" * 64))
        told = "online/Breakout-0 followed another history than history/Breakout-0"
        assert told in invoke(followed, "report").output
        assert f"left out, Breakout-0: {told}" in invoke(followed, "report", "--partial").output
        card.write_text(kept)
    scores.write_text(before)
    plan = json.loads(call(followed, "plan", "--json"))
    assert [(job["stage"], job["name"], job["done"]) for job in plan["jobs"]] == [
        ("evaluate", "random/Breakout", True),
        ("train-history", "Breakout-0", True),
        ("distill-online", "Breakout-0", True),
        ("evaluate", "history/Breakout-0/best", True),
        ("evaluate", "history/Breakout-0/last", True),
        ("evaluate", "online/Breakout-0", True),
    ]
    call(followed, "history", "--game", "breakout", "--states", "3")
    page = (followed / "data/history-Breakout-0.html").read_text()
    assert page.count("<figure") == 3
    assert "has been preferred since" in page


def test_a_version_that_another_policy_labelled_is_made_again(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, params = load_project(recorded / "params.yaml")
    record = history.History(layout.history("Breakout-0"))
    follower = distill_online.Follower(layout, params, "Breakout", 0, tmp_path, record, "cpu")
    for point, states in ((record.points[0], 150), (record.points[-1], 150), (record.points[-1], 200)):
        manifest = follower._collect(3, point, states, "").manifest
        assert (manifest.teacher["digest"], manifest.states) == (point.digest, states)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "versions/003").rglob("*"))
    follower._collect(3, record.points[-1], 200, "")
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "versions/003").rglob("*")) == before

    def stopped(collection: Collection, client: Client) -> None:
        raise KeyboardInterrupt

    first, last = record.points[0], record.points[-1]
    for best, states, again in ((first, 150, False), (last, 200, False), (last, 150, False), (last, 150, True)):
        with monkeypatch.context() as patch:
            patch.setattr(Collection, "run", stopped)
            with pytest.raises(KeyboardInterrupt):
                follower._collect(4, best, states, "")
        (begun,) = (tmp_path / "versions/.work/collect").glob("004-*")
        assert (begun / "seen").exists() == again
        (begun / "seen").touch()
    manifest = follower._collect(4, last, 150, "").manifest
    assert (manifest.teacher["digest"], manifest.states) == (last.digest, 150)


def test_what_a_stopped_sitting_took_counts(tmp_path: Path) -> None:
    for stopped in (KeyboardInterrupt, None):
        spent = score_online.Spent(tmp_path)
        with suppress(KeyboardInterrupt), spent.on("collecting 1"):
            time.sleep(0.3)
            if stopped:
                raise stopped
    assert 0.6 <= spent.told("collecting 1") < 5
    assert spent.told("distilling 1") == 0


def test_any_other_setting_of_a_follower_is_noticed(followed: Path) -> None:
    params = followed / "params.yaml"
    with edited_params(followed, params) as raw:
        rate = raw["presets"]["fast"]["learning_rate"]
        raw["online"]["Breakout"] |= {"window": 3, "seeds": [0]}
        raw["presets"]["fast"]["learning_rate"] = 1.0
    assert earlier_following(*load_project(params), "Breakout", 0).endswith(", window 2")
    assert (
        "learned or scored by other settings than params.yaml has now: Breakout-0 (learning_rate "
        in invoke(followed, "report").output
    )
    undone = [(job["stage"], job["name"]) for job in json.loads(call(followed, "plan", "--json"))["jobs"] if not job["done"]]
    assert {("distill-online", "Breakout-0"), ("evaluate", "online/Breakout-0")} <= set(undone)
    with edited_params(followed, params) as raw:
        raw["online"]["Breakout"] |= {"window": 2}
        raw["presets"]["fast"]["learning_rate"] = rate
        raw["presets"]["fast"]["memory_gb"] = 1.5  # as another machine may want it
    assert earlier_following(*load_project(params), "Breakout", 0) == ""
    assert "is there already" in call(followed, "distill-online", "--game", "Breakout", "--replay")


@pytest.mark.parametrize(
    ("section", "name", "value", "told"),
    [
        ("history", "select_episodes", 1, "history.select_episodes 2, not 1"),
        ("history", "network", "net2", "history.network net3, not net2"),
        ("evaluation", "epsilon", 0.25, "epsilon 0.5, not 0.25"),
        ("environment", "noop_max", 7, "environment.noop_max 30, not 7"),
    ],
)
def test_a_history_of_other_settings_is_not_taken_for_one_of_these(
    followed: Path, tmp_path: Path, section: str, name: str, value: Any, told: str
) -> None:
    folder = project(tmp_path)
    shutil.copytree(followed / "data", folder / "data")
    with edited_params(folder, folder / "params.yaml") as raw:
        changed = raw["history"]["Breakout"] if section == "history" else raw[section]
        changed[name] = value
    refused = invoke(folder, "distill-online", "--game", "Breakout", "--replay").output
    assert f"data/history/Breakout-0 was made with {told}: set params.yaml back" in refused
    assert f"teacher.{told.partition(', not')[0]}" in earlier_following(*load_project(folder / "params.yaml"), "Breakout", 0)
    undone = [job["stage"] for job in json.loads(call(folder, "plan", "--json"))["jobs"] if not job["done"]]
    assert undone[-5:] == ["train-history", "distill-online", "evaluate", "evaluate", "evaluate"]


def best_of(points: list[dict[str, Any]]) -> list[str]:
    """Who was the best up to each point."""
    return [max(points[: number + 1], key=lambda p: p["selected"])["digest"] for number in range(len(points))]


def test_a_record_whose_best_are_others_is_another_record(followed: Path, tmp_path: Path) -> None:
    folder = project(tmp_path)
    shutil.copytree(followed / "data", folder / "data")
    shutil.copytree(followed / ".work", folder / ".work")
    path = folder / "data/history/Breakout-0/history.json"
    told = json.loads(path.read_text())
    last = max(range(3), key=lambda n: told["points"][n]["selected"])
    told["points"][(last + 1) % 3]["selected"] = 1e6
    path.write_text(json.dumps(told))
    assert (
        "follows another history: remove it to start afresh"
        in invoke(folder, "distill-online", "--game", "Breakout", "--replay").output
    )
    path.write_text(json.dumps(told | {"points": json.loads((followed / path.relative_to(folder)).read_text())["points"][:2]}))
    result = invoke(folder, "distill-online", "--game", "Breakout", "--replay")
    assert "has 128 of 192 steps: run `pd-pipeline train-history --game Breakout --seed 0` to go on" in result.output


def interrupt(monkeypatch: pytest.MonkeyPatch, *at: int) -> None:
    """Ctrl-C in these evaluations, counted over everybody's."""
    calls = itertools.count()
    for module in (history, score_online):

        def tried(*arguments: Any, real: Any = module.tried, **named: Any) -> Any:
            if next(calls) in at:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        monkeypatch.setattr(module, "tried", tried)


def test_seconds_of_earlier_sittings_count_once(tmp_path: Path) -> None:
    """Killed after the curve has them, the next sitting is told of more than there was before the first."""
    for before in (100.0, 250.0):
        spent = score_online.Spent(tmp_path)
        with spent.on("scoring 0", before):
            pass
        assert spent.told("scoring 0") == 100.0


def test_more_episodes_at_each_point_are_played_without_learning_anew(
    followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tmp_path)
    for made in ("history", "online", "followers"):
        shutil.copytree(followed / "data" / made, folder / "data" / made)
    before, card = rows(folder), (folder / "data/online/Breakout-0/card.json").read_bytes()
    assert "is there already, with 2 episodes a point" in call(folder, "distill-online", "--game", "Breakout", "--replay")
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["online"]["Breakout"]["score_episodes"] = 3
    project_of = load_project(folder / "params.yaml")
    assert earlier_following(*project_of, "Breakout", 0) == ""
    left, whole = (next(job for job in jobs(*project_of, anew=anew) if job.stage == "distill-online") for anew in (False, True))
    assert not left.done
    assert 0 < (left.seconds or 0) < (whole.seconds or 0)  # of scores alone
    told = call(folder, "distill-online", "--game", "Breakout", "--replay")
    assert "3 episodes a point" in told
    assert "distill Breakout" not in told
    assert (folder / "data/online/Breakout-0/card.json").read_bytes() == card
    assert earlier_following(*project_of, "Breakout", 0) == ""
    with (folder / "data/online/Breakout-0" / RETURNS).open(newline="") as file:
        returns = list(csv.DictReader(file))
    assert [int(row["point"]) for row in returns] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for old, new in zip(before, rows(folder), strict=True):
        for who in ("teacher", "student"):
            here = [float(row[who]) for row in returns if row["point"] == new["point"]]
            assert float(new[f"{who}_return"]) == pytest.approx(sum(here) / 3)
            assert float(old[f"{who}_return"]) == pytest.approx(sum(here[:2]) / 2)
        assert new["best_return"] == rows(folder)[int(new["best_point"])]["teacher_return"]
    lost = folder / "data/online/Breakout-0" / RETURNS
    told_all = lost.read_bytes()
    lost.unlink()
    assert "distill Breakout" not in call(folder, "distill-online", "--game", "Breakout", "--replay")
    assert lost.read_bytes() == told_all
    shutil.rmtree(folder / "data/followers")
    for raised in (3, 4):  # a clone, which has not the student as it was at each point
        with edited_params(folder, folder / "params.yaml") as raw:
            raw["online"]["Breakout"]["score_episodes"] = raised
        result = invoke(folder, "distill-online", "--game", "Breakout", "--replay")
        assert result.exit_code == 1
        assert "data/online/Breakout-0 is there, made by these settings, but not " in result.output
    assert lost.read_bytes() == told_all
    monkeypatch.setattr("stages.plan.Machine.episodes", lambda *_: 0.0)
    left = next(job for job in jobs(*load_project(folder / "params.yaml")) if job.stage == "distill-online")
    assert not left.done
    assert left.seconds  # to make all of it anew, as the refusal says


def test_a_record_in_a_clone_is_not_made_anew(recorded: Path, tmp_path: Path) -> None:
    folder = project(tmp_path)
    shutil.copytree(recorded / "data/history", folder / "data/history")
    path = folder / "data/history/Breakout-0/history.json"
    before = path.read_bytes()
    told = "data/history/Breakout-0 is there already, of 192 steps: remove it to make it anew"
    assert told in call(folder, "train-history", "--game", "Breakout")
    with edited_params(folder, folder / "params.yaml") as raw:  # as if it were of fewer steps than wanted
        raw["history"]["Breakout"]["steps"] = 256
    path.write_text(json.dumps(json.loads(before) | {"made": made_with(load_project(folder / "params.yaml")[1], "Breakout")}))
    result = invoke(folder, "train-history", "--game", "Breakout")
    assert result.exit_code == 1
    assert "is a record that a teacher learning now would replace: bring " in result.output
    assert "has 192 of 256 steps" in invoke(folder, "distill-online", "--game", "Breakout", "--replay").output


def test_the_student_of_a_point_may_be_evaluated(followed: Path) -> None:
    assert "followers/Breakout-0/001: mean return" in call(followed, "evaluate", "followers/Breakout-0/001")
    labels = ("--labels-from", str(followed / "data/followers/Breakout-0/001"))
    result = invoke(followed, "collect", "--game", "Breakout", *labels, "--states", "50", "--out", str(followed / "labelled"))
    assert result.exit_code == 1
    assert "gives a policy's logits, not Q-values" in result.output


@pytest.mark.slow
def test_interrupted_it_comes_to_the_same(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (recorded / "data/online/Breakout-0").exists():
        call(recorded, "distill-online", "--game", "Breakout", "--replay")
    folder = project(tmp_path)
    shutil.copytree(recorded / "data/history", folder / "data/history")
    interrupt(monkeypatch, 3)  # the teacher's at the second point
    assert invoke(folder, "distill-online", "--game", "Breakout", "--replay").exit_code == 130
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["online"]["Breakout"] |= {"seeds": [0, 1], "score_episodes": 3}
    interrupt(monkeypatch, 3)  # the student's at the second point, the first of which has one more by then
    assert invoke(folder, "distill-online", "--game", "Breakout", "--replay").exit_code == 130
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["online"]["Breakout"]["score_episodes"] = 2
    monkeypatch.setattr("stages.distill.CHECKPOINT_EVERY_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        real, calls = Student.update, itertools.count()

        def update(*arguments: Any) -> torch.Tensor:
            if next(calls) == 4 + 5:  # of the last point's four updates and the final eight
                raise KeyboardInterrupt
            return real(*arguments)

        patch.setattr(Student, "update", update)
        stopped = invoke(folder, "distill-online", "--game", "Breakout", "--replay")
        assert (stopped.exit_code, "resuming Breakout after 2 points" in stopped.output) == (130, True)
    assert "resuming Breakout at point 3 at 4 updates" in call(folder, "distill-online", "--game", "Breakout", "--replay")
    assert not list(folder.glob(".work/distill-online/*/learning-*"))
    assert rows(folder) == rows(recorded)
    assert (folder / "data/online/Breakout-0" / RETURNS).read_text() == (
        recorded / "data/online/Breakout-0" / RETURNS
    ).read_text()
    ours, theirs = (json.loads((p / "data/online/Breakout-0/card.json").read_text())["digest"] for p in (folder, recorded))
    assert ours == theirs


@pytest.mark.slow
def test_killed_while_it_publishes_it_publishes(followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path)
    shutil.copytree(followed / "data/history", folder / "data/history")
    real, calls = replace_folder, itertools.count()

    def killed(*arguments: Any) -> None:
        if next(calls) in (0, 3):  # before the versions are published; then, when they are, before the student is
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr("stages.distill_online.replace_folder", killed)
    assert [invoke(folder, "distill-online", "--game", "Breakout", "--replay").exit_code for _ in range(3)] == [130, 130, 0]
    assert rows(folder) == rows(followed)
    assert open_dataset(folder / "data/versions/Breakout-0/003").manifest.states == 200


@pytest.mark.slow
def test_a_teacher_is_followed_while_it_learns(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path)
    interrupt(monkeypatch, 3, 8)  # what chooses at the second point; then, the student's score at the third
    sittings = 0
    while (result := invoke(folder, "distill-online", "--game", "Breakout")).exit_code == 130:
        sittings += 1
    assert result.exit_code == 0, result.output
    assert sittings == 2
    ours, theirs = (json.loads((p / "data/history/Breakout-0/history.json").read_text())["points"] for p in (folder, recorded))
    assert ours[0]["digest"] == theirs[0]["digest"]  # afterwards a resumed learner plays other episodes
    assert [(int(row["steps"]), row["snapshot"]) for row in rows(folder)] == [(p["steps"], p["digest"]) for p in ours]
    assert len(ours) == 3
    assert "is there already" in call(folder, "distill-online", "--game", "Breakout", "--replay")
    assert "is there already" in call(folder, "distill-online", "--game", "Breakout")
    shutil.rmtree(folder / "data/followers")
    assert "published" in call(folder, "distill-online", "--game", "Breakout", "--replay")  # from where the live one was made
    assert (folder / "data/followers/Breakout-0/002/card.json").is_file()


@pytest.mark.slow
def test_a_history_that_was_too_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path)
    with edited_params(folder, folder / "params.yaml") as raw:
        small = {key: value for key, value in asdict(replace(DQN, replay_start=64)).items() if value is not None}
        raw["teacher_presets"]["dqn"] = {"algorithm": "dqn", "dqn": small}
        raw["history"]["Breakout"] |= {"preset": "dqn", "steps": 256, "every": 128, "select_episodes": 1}
    call(folder, "train-history", "--game", "breakout")
    path = folder / "data/history/Breakout-0/history.json"
    before = json.loads(path.read_text())["points"]
    call(folder, "distill-online", "--game", "Breakout", "--replay")
    followed = rows(folder)
    shutil.rmtree(path.parent)  # as `dvc repro` does
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["history"]["Breakout"]["steps"] = 320
    assert "resuming Breakout at 256 steps" in call(folder, "train-history", "--game", "breakout")
    after = json.loads(path.read_text())["points"]
    assert after[:-1] == before
    assert after[-1]["steps"] == 320
    last = json.loads((path.parent / "last/card.json").read_text())
    assert last["digest"] == after[-1]["digest"]
    assert f"resuming Breakout after {len(before)} points" in call(folder, "distill-online", "--game", "Breakout", "--replay")
    assert rows(folder)[:-1] == followed
    final = [
        json.loads((folder / f"data/{made}/card.json").read_text()) for made in ("online/Breakout-0", "history/Breakout-0/best")
    ]
    assert final[0]["versions"] == len(after) + 1
    assert final[0]["teacher"]["digest"] == final[1]["digest"]
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["history"]["Breakout"]["steps"] = 192
    assert "beyond history.Breakout.steps = 192" in invoke(folder, "train-history", "--game", "breakout").output
    monkeypatch.setattr("stages.params.MOST_POINTS", 4)
    with edited_params(folder, folder / "params.yaml") as raw:
        raw["history"]["Breakout"]["steps"] = 512
    (made,) = folder.glob(".work/train-history/*/history/history.json")
    told = json.loads(made.read_text())
    told["points"].insert(0, told["points"][0] | {"steps": 128})  # now 128, 256, 320
    made.write_text(json.dumps(told))
    shutil.rmtree(path.parent)
    assert "has 3 snapshots and 2 to come, 4 at most" in invoke(folder, "train-history", "--game", "breakout").output


def test_what_is_refused(tmp_path: Path) -> None:
    folder = project(tmp_path)
    result = invoke(folder, "distill-online", "--game", "Breakout", "--replay")
    assert result.exit_code == 1
    assert "has no history: run `pd-pipeline train-history --game Breakout --seed 0`" in result.output
    assert "params.yaml has no history 'Pong': it has Breakout" in invoke(folder, "train-history", "--game", "pong").output
    assert "has no history" in invoke(folder, "history", "--game", "breakout").output
    lines = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(lines.replace("every: 64", "every: 192"))
    assert "1 snapshots are not 2 to 99" in invoke(folder, "train-history", "--game", "breakout").output
    (folder / "params.yaml").write_text(lines.replace("score_episodes: 2", "score_episodes: 1"))
    assert "score_episodes = 1: " in invoke(folder, "distill-online", "--game", "Breakout", "--replay").output
    (folder / "params.yaml").write_text(lines)
    damaged = folder / "data/history/Breakout-0/history.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("[1]")
    result = invoke(folder, "distill-online", "--game", "Breakout", "--replay")
    assert result.exit_code == 1
    assert "is not a history" in result.output
    damaged.write_text(json.dumps({"points": [[]]}))
    assert "is not a history" in invoke(folder, "distill-online", "--game", "Breakout", "--replay").output
    point = {"number": 0, "steps": 1, "selected": 0.0, "digest": "d", "seconds_learning": 1.0, "seconds_selecting": 1.0}
    damaged.write_text(json.dumps({"points": [point]}))
    told = "does not tell how it was made: run `pd-pipeline train-history --game Breakout --seed 0` to record it again"
    assert told in invoke(folder, "distill-online", "--game", "Breakout", "--replay").output
    assert (
        "is a record that a teacher learning now would replace" in invoke(folder, "distill-online", "--game", "Breakout").output
    )

"""evaluate on real ROMs: killed or not, one agent or several, here or on workers, it ends with the same scores and clips."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.agents.checkpoints import load_card, read_files, save_agent
from pipeline.agents.networks import NETWORKS, QNetwork
from pipeline.atari.envs import fingerprint
from pipeline.evaluate import PROTOCOLS, Episode
from pipeline.evaluate import play as play_episodes
from stages import contest, evaluate
from stages.cli import main
from stages.params import load
from tests.fakes import ENVIRONMENT, edited_params

SCORES = "data/scores/random/Breakout.json"


def project(folder: Path) -> Path:
    with edited_params(folder) as raw:
        raw["evaluation"] |= {"episodes": 5, "width": 2}
    return folder


def call(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--params", str(folder / "params.yaml"), "evaluate", *(arguments or ["random/Breakout"])])


def test_a_killed_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = project(tmp_path / "whole"), project(tmp_path / "cut")
    first = call(whole)
    assert first.exit_code == 0, (first.output, first.exc_info)

    played: list[int] = []

    def killed_after(events: int) -> Any:
        def play(*arguments: Any) -> Iterator[Any]:
            for event in play_episodes(*arguments):
                yield event
                played.append(event.seed)
                if len(played) == events:
                    raise KeyboardInterrupt

        return play

    monkeypatch.setattr(contest, "play", killed_after(3))
    assert call(cut).exit_code == 130
    (notes,) = (cut / ".work/evaluate").rglob("episodes.jsonl")
    with notes.open("a") as file:
        file.write('{"seed": 1')  # the line that a kill tore
    before = len(notes.read_text().splitlines())
    assert not (cut / SCORES).exists()

    played.clear()
    monkeypatch.setattr(contest, "play", killed_after(10**9))
    assert call(cut).exit_code == 0
    assert 0 < len(played) < 5  # of five
    assert before > 1
    assert json.loads((cut / SCORES).read_text()) == json.loads((whole / SCORES).read_text())
    for made in ("data/clips/random/Breakout.mp4", "data/episodes/random/Breakout.parquet"):
        assert (cut / made).read_bytes() == (whole / made).read_bytes()
    assert not notes.parent.exists()


def test_a_longer_evaluation_goes_on_from_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(*arguments: Any) -> Iterator[Episode]:
        for episode in play_episodes(*arguments):
            seeds.append(episode.seed)
            yield episode

    def evaluated(**changes: Any) -> dict[str, bytes]:
        with edited_params(tmp_path, tmp_path / "params.yaml") as raw:
            raw["evaluation"] |= changes
        seeds.clear()
        done = call(tmp_path)
        assert done.exit_code == 0, done.output
        return {path.name: path.read_bytes() for path in (tmp_path / "data").rglob("Breakout.*")}

    seeds: list[int] = []
    monkeypatch.setattr(contest, "play", counted)
    project(tmp_path)
    whole = evaluated(game_episodes={"Breakout": 3})
    assert (len(whole), len(seeds)) == (3, 3)
    short = evaluated(game_episodes={}, episodes=2)
    assert (json.loads(short["Breakout.json"])["episodes"], len(seeds)) == (2, 0)
    assert evaluated(episodes=3) == whole
    assert len(seeds) == 1
    assert evaluated(seed=2) != whole  # other seeds
    assert len(seeds) == 3
    told = json.loads(short["Breakout.json"]) | {"recipe": 0}
    (tmp_path / SCORES).write_text(json.dumps(told))
    evaluated()
    assert len(seeds) == 3
    (tmp_path / "data/episodes/random/Breakout.parquet").write_bytes(b"torn")
    evaluated()
    assert len(seeds) == 3


@pytest.fixture
def breakout(tmp_path: Path, breakout_teacher: Path) -> Path:
    folder = tmp_path / "breakout"
    with edited_params(folder) as raw:
        raw["zoo"] = str(breakout_teacher.parent)
        raw["evaluation"] |= {"episodes": 3, "teacher_episodes": 4, "width": 2, "epsilon": 0.5}
    return folder


def scores(folder: Path, agent: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / f"data/scores/{agent}.json").read_text())
    return told


def test_workers_come_to_the_same(breakout: Path, on_one_worker: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)  # another agent than the teacher
    card = {"role": "student", "game": "Breakout", "environment": fingerprint("Breakout", ENVIRONMENT)}
    save_agent(breakout / "data/students/breakout/other-0", QNetwork(NETWORKS["net3"], {"Breakout": 4}), card)
    agents = ("teachers/Breakout", "students/breakout/other-0", "random/Breakout")
    done = call(breakout, *agents)
    assert done.exit_code == 0, done.output
    assert len({(breakout / f"data/episodes/{agent}.parquet").read_bytes() for agent in agents}) == 3
    assert done.stdout.splitlines() == [str(breakout / f"data/scores/{agent}.json") for agent in agents]
    kinds = ("scores", "episodes", "clips")
    made = {path: path.read_bytes() for kind in kinds for path in (breakout / "data" / kind).rglob("*.*")}
    assert len(made) == 9
    assert [scores(breakout, agent)["episodes"] for agent in agents] == [4, 3, 3]
    for path in made:
        path.unlink()
    monkeypatch.setattr(evaluate, "PART_EPISODES", 2)
    done = call(breakout, *agents, *on_one_worker)
    assert done.exit_code == 0, done.output
    assert {path: path.read_bytes() for path in made} == made
    assert not list((breakout / ".work/evaluate").iterdir())


def test_what_one_worker_played_is_not_played_again(
    breakout: Path, on_one_worker: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(notes: contest.Notes, episode: Episode) -> None:
        add(notes, episode)
        if len(notes.finished) == 2:
            raise KeyboardInterrupt

    def counted(notes: contest.Notes, episode: Episode) -> None:
        seeds.append(episode.seed)
        add(notes, episode)

    add = contest.Notes.add
    seeds: list[int] = []
    monkeypatch.setattr(evaluate, "PART_EPISODES", 2)
    monkeypatch.setattr(contest.Notes, "add", interrupted)
    assert call(breakout, "random/Breakout", *on_one_worker).exit_code == 130
    monkeypatch.setattr(contest.Notes, "add", counted)
    assert call(breakout, "random/Breakout", *on_one_worker).exit_code == 0
    assert len(seeds) == 1


def test_of_several_agents_none_is_played_again(breakout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second, the first is only published again."""

    def interrupted(notes: contest.Notes, episode: Episode) -> None:
        add(notes, episode)
        seeds.append(episode.seed)
        if len(seeds) == 4:
            raise KeyboardInterrupt

    add = contest.Notes.add
    seeds: list[int] = []
    monkeypatch.setattr(contest.Notes, "add", interrupted)
    agents = ("random/Breakout", "teachers/Breakout")
    assert call(breakout, *agents).exit_code == 130
    assert call(breakout, *agents).exit_code == 0
    assert len(seeds) == 3 + 4
    assert not list((breakout / ".work/evaluate").iterdir())


def test_of_notes_only_a_torn_line_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episodes.jsonl"
    first, second = (Episode(seed=seed, episode_return=1.0, steps=5, stalled=False) for seed in (3, 4))
    contest.Notes(path).add(first)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seed": 4, "epi')
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", None)  # whole lines are never written again: a kill would lose them
        notes = contest.Notes(path)
    assert (notes.finished, path.read_bytes()) == ([first], whole)
    notes.add(second)
    assert contest.Notes(path).finished == [first, second]


def test_results_are_called_as_the_game_is(breakout: Path) -> None:
    assert call(breakout, "random/breakout").exit_code == 0
    assert (breakout / "data/scores/random/Breakout.json").is_file()


def test_a_worker_refuses_another_agent_or_world(breakout_teacher: Path) -> None:
    protocol = load(Path("params.yaml")).protocol()
    files = tuple(read_files(breakout_teacher).items())
    part = evaluate.Part("Breakout", protocol, protocol.digest("Breakout"), "0" * 64, [1])
    with pytest.raises(ValueError, match="was sent another agent"):
        evaluate.play_part(part, files)
    with pytest.raises(ValueError, match="has another ale-py or ROM"):
        evaluate.play_part(part._replace(agent_digest=load_card(breakout_teacher)["digest"], world_digest="0"), files)


def test_protocols_are_results_of_their_own(breakout: Path) -> None:
    assert call(breakout, "random/Breakout").exit_code == 0
    own = scores(breakout, "random/Breakout")
    assert own["protocol"]["name"] == "own"  # epsilon is 0.5
    for name in ("sticky", "paper"):
        assert call(breakout, "random/Breakout", "--protocol", name).exit_code == 0
    assert scores(breakout, "random/Breakout") == own
    sticky = scores(breakout, "random/Breakout@sticky")
    assert sticky["protocol"]["name"] == "sticky"
    assert sticky["protocol"]["digest"] != own["protocol"]["digest"]
    assert (breakout / "data/clips/random/Breakout@sticky.mp4").is_file()
    standard = load(Path("params.yaml"))
    assert standard.protocol().name == "paper"
    world = standard.protocol("sticky").environment
    assert (world.sticky, world.noop_max, world.max_episode_frames, world.frame_skip) == (0.25, 0, 18_000, 4)
    (option,) = [p for p in main.commands["evaluate"].params if p.name == "protocol"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(PROTOCOLS)


def test_an_agent_of_another_environment_is_refused_or_marked(breakout: Path) -> None:
    zoo = load(breakout / "params.yaml").zoo
    with edited_params(breakout) as raw:
        raw["zoo"] = zoo
        raw["environment"]["noop_max"] = 10
        raw["evaluation"] |= {"episodes": 1, "epsilon": 0.5}
    refused = call(breakout, "teachers/Breakout")
    assert refused.exit_code == 1
    told = " ".join(refused.output.split())
    assert "another environment than params.yaml's (config.noop_max: 30 there, 10 here" in told
    assert "--other-environment" in told
    assert call(breakout, "teachers/Breakout", "--other-environment").exit_code == 0
    assert scores(breakout, "teachers/Breakout")["made_elsewhere"]["config.noop_max"] == {"there": 30, "here": 10}
    assert scores(breakout, "teachers/Breakout")["protocol"]["name"] == "own"

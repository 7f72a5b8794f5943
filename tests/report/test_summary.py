"""Over several games: means by hand, intervals that include training where they say so."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report import figures, reproduction, tables
from pipeline.report.page import render
from pipeline.report.paper import STUDENTS
from pipeline.report.results import Beside, Results, Several
from pipeline.report.scores import Baseline, Evaluated, score
from pipeline.report.summary import Game, Lead, geometric_mean, leads, summarise
from tests.report.test_scores import evaluated

PQN = {"algorithm": "pqn", "architecture": {"layer_norm": True}}
DQN_CARD = {"algorithm": "dqn", "architecture": {"layer_norm": False}}
PLAIN = {"objective": {"loss": "kl", "temperature": 0.01}, "dataset": {"digest": "d", "states": 1000}}


def game(
    folder: Path, name: str, best: float, students: dict[str, list[list[float]]], network: str = "net1", card: Any = None
) -> Game:
    """A game whose teacher scores `best` and whose random agent scores 0; students by variant, one list of returns per run."""

    def play(role: str, returns: list[float], **more: object) -> Evaluated:
        return evaluated(folder, role, returns, game=name, **more)

    runs = [
        play(
            "student",
            returns,
            name=f"{name}-{variant}-{seed}".replace("/", "-"),
            variant=variant,
            loss="kl",
            network=network,
            card=PLAIN | (card or {}),
        )
        for variant, several in students.items()
        for seed, returns in enumerate(several)
    ]
    teacher = play("teacher", [best, best], name=f"{name}-teacher", card=PQN)
    return Game(teacher, play("random", [0.0, 0.0], name=f"{name}-random"), runs)


def results(games: Mapping[str, Game], **more: Any) -> Results:
    """Of agents of one game."""
    return Results(games=games, summaries=summarise(games), **more)


def together(games: Mapping[str, Game]) -> Results:
    """Of agents of all these games."""
    return replace(results(games), summaries=[], several=[Several(summaries=summarise(games), games=games)])


def test_summaries_by_hand(tmp_path: Path) -> None:
    a = game(tmp_path, "Pong", 10, {"kl": [[5, 15]], "mse": [[-5, 5]]})
    b = game(tmp_path, "Breakout", 100, {"kl": [[40, 40], [60, 60]]})
    kl, mse = summarise({"Pong": a, "Breakout": b})
    assert (kl.games["Pong"].normalized, kl.games["Breakout"].normalized) == (100.0, 50.0)
    assert kl.mean == pytest.approx(np.sqrt(100 * 50))
    assert kl.games["Breakout"].runs == 2
    assert kl.games["Breakout"].ci95 == (40.0, 60.0)  # episodes never differ: all of this is training
    assert (mse.mean, mse.ci95, mse.floored) == (None, None, ("Pong",))
    assert geometric_mean([np.array([0.0]), np.array([100.0])])[0] == pytest.approx(10.0)


def test_the_pages_hold_every_number_and_the_papers(tmp_path: Path) -> None:
    games = {
        "Pong": game(tmp_path, "Pong", 10, {"kl-net1": [[9, 9]]}),
        "Tennis": game(tmp_path, "Tennis", 20, {"kl-net1": [[15, 15]]}),
    }
    summaries = summarise(games)
    page = reproduction.markdown(results(games, protocol="epsilon 0.05"))
    assert "| kl-net1 | 100 | 1 | 90.0 [90.0, 90.0] | 75.0 [75.0, 75.0] | 82.2 [82.2, 82.2] | 108.3 |" in page
    assert "| Pong | 10.0 | 16.2 | (94.4) | (95.1) | (100.6) |" in page
    assert "Ours: Pong, PQN with LayerNorm (100 parameters); Tennis, PQN with LayerNorm (100 parameters)." in page
    assert "What was asked" not in page  # of four games
    assert "they do not include the variance of training" in page
    assert "82.2 [82.2,&nbsp;82.2]" in tables.over_games(summaries).html("caption")


def test_table_1_has_intervals_and_rows_of_other_experiments(tmp_path: Path) -> None:
    pong = game(tmp_path, "Pong", 10, {"kl-dqn": [[8, 10]]}, network="dqn")
    same = game(tmp_path / "..", "Pong", 16, {"kl-dqn": [[20, 12]]}, network="dqn")
    teacher = replace(same.teacher, card=DQN_CARD)
    beside = [Beside(teacher=teacher, summaries=summarise({"Pong": same}))]
    page = reproduction.markdown(results({"Pong": pong}, beside=beside))
    assert "| Pong | 10.0 | 16.2 | (94.4) | (95.1) | 90.0 [80.0, 100.0] (100.6) |" in page
    assert "| Pong, plain DQN teacher | 16.0 | 16.2 | (94.4) | (95.1) | 100.0 [75.0, 125.0] (100.6) |" in page
    assert "Ours: Pong, PQN with LayerNorm (100 parameters); Pong, plain DQN (100 parameters)." in page


def test_a_loss_is_ahead_of_the_next_by_the_episodes_that_both_played(tmp_path: Path) -> None:
    games = {}
    for name, low in {"Freeway": 0.0, "Pong": 4.0}.items():
        held_out = {"held_out": {"agreement": 0.875, "regret": 0.00123}}
        learned: dict[str, list[list[float]]] = {"kl-dqn": [[2, 22]], "nll-dqn": [[low, low + 20]]}
        found = game(tmp_path, name, 20, learned, network="dqn", card=held_out)
        kl, nll = found.students
        games[name] = replace(found, students=[kl, replace(nll, loss="nll")])
    (lead,) = leads(games, "dqn", ("kl", "nll", "mse"))
    assert lead.games == {"Freeway": (10.0, (10.0, 10.0)), "Pong": (-10.0, (-10.0, -10.0))}  # whichever episodes are drawn
    assert lead.mean is not None
    assert lead.mean[0] == pytest.approx(np.sqrt(60 * 60) - np.sqrt(50 * 70))
    page = reproduction.markdown(results(games, leads=[lead]))
    # The outer ones of nine resamples: 110 and 10 against 100 and 20, 10 and 110 against 1 and 120.
    low, high = np.sqrt(110 * 10) - np.sqrt(100 * 20), np.sqrt(10 * 110) - np.sqrt(1 * 120)
    assert f"| KL less NLL | 10.0 [10.0, 10.0] | -10.0 [-10.0, -10.0] | 0.8 [{low:.1f}, {high:.1f}] |" in page
    assert ">10.0 [10.0,&nbsp;10.0]</td>" in render([], results(games, leads=[lead]), {})
    assert "| the paper's KL less NLL | 1.9 | 5.5 |  |" in page
    other = Lead("kl", "nll", {"Pong": (5.3, (1.0, 9.5))}, None)
    beside = [Beside(teacher=replace(games["Pong"].teacher, card=DQN_CARD), summaries=(), leads=[other])]
    page = reproduction.markdown(results(games, leads=[lead], beside=beside))
    assert "| points | Freeway | Pong | geometric mean | Pong, plain DQN teacher |" in page
    assert f"[{low:.1f}, {high:.1f}] | 5.3 [1.0, 9.5] |" in page
    assert "| the paper's KL less NLL | 1.9 | 5.5 |  |  |" in page
    assert "| KL | 87.5 %, 0.0012 | 87.5 %, 0.0012 |" in page
    assert "| MSE |" not in page
    del games["Pong"]
    games["Pong"] = game(tmp_path, "Pong", 20, {"kl-dqn": [[2, 22]]}, network="dqn")
    assert leads({}, "dqn", ("kl", "nll")) == []
    (lead,) = leads(games, "dqn", ("kl", "nll"))
    assert (list(lead.games), lead.mean) == (["Freeway"], None)


def test_what_was_asked_is_met_missed_or_open(tmp_path: Path) -> None:
    games = {}
    for name, floor in STUDENTS.items():
        variants = {
            "kl-net3": [[0.91 * floor, 0.91 * floor]],
            "kl-net3-r1": [[floor, floor]],
            "kl-net3-r2": [[0.97 * floor] * 2],
        }
        students = list(game(tmp_path, name, floor, variants, network="net3").students)
        for which, who in enumerate(students[1:], start=2):
            students[which - 1] = replace(who, card=who.card | {"datasets": [{"states": 10}] * which})
        students[0] = replace(students[0], card=students[0].card | {"device": "Some GPU"})
        large = game(tmp_path, name, floor, {"kl-dqn": [[0.9 * floor, 1.1 * floor]]}, network="dqn")
        games[name] = replace(large, students=[*large.students, *students])
    page = reproduction.markdown(results(games))
    assert re.search(r"\| dqn: geometric mean % \| 100.0 \| 100.0 \[9[0-4]\.\d, 10\d\.\d\] \| met \|", page)
    assert re.search(r"\| dqn: geometric mean %, lower end of its interval \| 95.0 \| 9[0-4]\.\d \| missed \|", page)
    assert "| net1: geometric mean % | 100.0 |  | open |" in page
    assert "| net3: geometric mean % | 90.0 | 91.0 [91.0, 91.0] | met |" in page
    last_round = "| net3 with student-driven rounds: geometric mean % | 98.0 | 97.0 [97.0, 97.0] | missed |"
    assert last_round in page
    assert "| dqn: mean return in Breakout | 287.8 | 287.8 | met |" in page
    assert "| the paper's, KL, of its teacher's size | 287.8 | 26.7 | 16.3 | 7,112.8 |" in page
    assert "| kl-net3 | 261.9 [261.9, 261.9] | 24.3" in page
    of = "(Breakout, Freeway, Pong, Qbert)"
    assert f"States that students learned from: 1,000 {of}; by kl-net3-r1 20 {of}; by kl-net3-r2 30 {of}." in page
    assert "Of these 16 students 4 learned on a GPU (Some GPU)." in page


@pytest.mark.parametrize(
    "card",
    [
        {"objective": {"loss": "kl", "temperature": 1.0}},
        {"objective": {"loss": "kl", "temperature": 0.01, "per_gap": True}},
        {"datasets": [{"states": 1}] * 2},
    ],
)
def test_the_papers_numbers_stand_beside_its_own_students_alone(tmp_path: Path, card: dict[str, object]) -> None:
    other = game(tmp_path, "Pong", 10, {"kl-net1": [[9, 9]], "kl-net1-rusu": [[9, 9]]}, card=card)
    assert "108.3" not in tables.over_games(summarise({"Pong": other})).markdown()
    rows = [tables.Row(score(who, Baseline(other.teacher, other.chance)), who, 100) for who in other.students]
    assert "108.3" not in tables.scores(rows).markdown()
    named = game(tmp_path, "Pong", 10, {"kl-net1": [[9, 9]], "kl-net1-rusu": [[9, 9]]})
    assert tables.over_games(summarise({"Pong": named})).markdown().count("108.3") == 1


def test_the_table_of_several_games_is_the_papers_measure(tmp_path: Path) -> None:
    names = ("trio/kl-net1", "trio/kl-often")
    games = {g: game(tmp_path, g, 10, {name: [[9, 9]] for name in names}) for g in ("Freeway", "Pong")}
    games["Qbert"] = game(tmp_path, "Qbert", 10, {name: [[16, 16]] for name in names})
    page = reproduction.markdown(together(games))
    assert page.startswith("# Reproducing the paper: several games in one network\n")
    assert "## Table 1" not in page
    mean, nine = (90 * 90 * 160) ** (1 / 3), "90.0 [90.0, 90.0]"
    row = f"| teachers, kl | 100 | {nine} | {nine} | 160.0 [160.0, 160.0] | {mean:.1f} [{mean:.1f}, {mean:.1f}]"
    assert f"| trio/kl-net1 {row} | 116.9 |" in page
    assert f"| trio/kl-often {row} |  |" in page  # the paper had no such student
    assert "steps a game" not in page  # there is no baseline
    assert "| runs |" not in page
    assert "every student has one run" in page
    assert "| our teachers | 10.0 [10.0, 10.0] (2 episodes) |" in page
    assert "| the random agent | " in page
    assert f"| trio/kl-net1 | {mean:.1f} | met | 90.0 | missed |" in page
    assert f"| trio/kl-often | {mean:.1f} | met | 90.0 | missed |" in page
    four = {**games, "Breakout": game(tmp_path, "Breakout", 10, {"quartet/kl-more": [[9, 9]]})}
    assert "asked" not in reproduction.markdown(together(four))  # of three games
    twice = {g: game(tmp_path, g, 10, {"trio/kl-net1": [[9, 9], [8, 8]], "trio/kl-often": [[9, 9]]}) for g in games}
    page = reproduction.markdown(together(twice))
    assert "| trio/kl-net1 | teachers, kl | 100 | 2 |" in page
    assert "| trio/kl-often | teachers, kl | 100 | 1 |" in page
    del games["Pong"]
    page = reproduction.markdown(together(games))
    assert "116.9" not in page  # the paper's are of three games
    assert "asked" not in page


def test_a_baseline_is_also_measured_by_teachers_of_its_steps(tmp_path: Path) -> None:
    curve = tmp_path / "curve.csv"
    curve.write_text("steps,train_return,eval_return\n1000,1,4\n500000,1,2\n1001472,2,5\n1002000,9,\n1502208,9,10\n")
    games = {}
    for name in ("Freeway", "Pong"):
        found = game(tmp_path, name, 10, {"pair/kl": [[9, 9]]})
        told = {"game": name, "variant": "pair/pqn", "algorithm": "pqn", "card": {"steps_trained": 1_000_000}}
        baseline = evaluated(tmp_path, "multitask", [6, 6], name=f"{name}-pqn", **told)
        games[name] = Game(
            replace(found.teacher, curve=curve, card={**found.teacher.card, "steps": 1_502_208}),
            found.chance,
            [*found.students, baseline],
        )
    kl, pqn = summarise(games)
    assert (kl.steps, kl.at_equal_steps) == (None, None)
    assert pqn.steps == 1_000_000
    assert pqn.at_equal_steps == pytest.approx(120.0)
    page = reproduction.markdown(together(games))
    six = "60.0 [60.0, 60.0]"
    assert f"| pair/pqn | reward, pqn | 1,000,000 | 100 | {six} | {six} | {six} | {six} | 60.0 | 120.0 |" in page
    assert "published after their own (Freeway 1,502,208, Pong 1,502,208)" in page
    assert "Steps a game" not in tables.of_steps([kl], {})
    curve.write_text(
        "steps,train_return,eval_return\n500000,2,8\n1000000,2,5\n1502208,9,10\n"
    )  # its selection had kept the first
    assert summarise(games)[1].at_equal_steps == pytest.approx(75.0)
    curve.write_text("steps,train_return,eval_return\n1000000,2,0\n1502208,9,10\n")  # it knew no more than chance
    assert summarise(games)[1].at_equal_steps is None


def test_a_race_shows_what_is_forgotten_while_others_are_learned(tmp_path: Path) -> None:
    curve = tmp_path / "curve.csv"
    curve.write_text("updates,states_Breakout,return_Breakout,return_Pong\n10,1000000,1,20\n20,2000000,2,3\n")
    runs = game(tmp_path, "Pong", 10, {"breakout/kl": [[9, 9]]})
    drawn = figures.race(runs.teacher, [replace(who, curve=curve) for who in runs.students])
    assert ", learning Breakout" in drawn


def test_a_race_may_have_many_runners(tmp_path: Path) -> None:
    curve = tmp_path / "curve.csv"
    curve.write_text("steps,eval_return_Pong\n1000000,1\n2000000,2\n")
    runs = game(tmp_path, "Pong", 10, {"trio/kl": [[9, 9]] * 12})
    drawn = figures.race(runs.teacher, [replace(who, curve=curve) for who in runs.students])
    assert drawn.count("<text") > 12


@pytest.mark.parametrize(("games", "drawn"), [(["Breakout"], False), (["Breakout", "Pong"], True)])
def test_a_share_of_the_loss_is_drawn_where_several_games_have_one(tmp_path: Path, games: list[str], drawn: bool) -> None:
    curve = tmp_path / "curve.csv"
    head = ",".join(["updates", *(f"share_{g}" for g in games)])
    curve.write_text(f"{head}\n10{',1' * len(games)}\n")
    (who,) = game(tmp_path, "Breakout", 10, {"pair/kl": [[9, 9]]}).students
    assert bool(figures.over_training(replace(who, curve=curve), "share_", "share")) == drawn

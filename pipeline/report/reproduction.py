"""docs/reproducing-the-paper.md: the paper's tables beside ours, written by the report so that no number is typed by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import tables
from pipeline.report.paper import TABLE1
from pipeline.report.results import Results
from pipeline.report.summary import Summary


def markdown(results: Results) -> str:
    """The page as text: agents of one game, then those of several, then those that followed a learning teacher."""
    summaries, teachers, online, beside = results.summaries, results.teachers, results.online, results.beside
    taught = [*teachers.values(), *(who for who, _ in beside)]
    told = "; ".join(f"{who.game}, {_trained(who.card)} ({who.parameters:,} parameters)" for who in taught)
    shown = [*summaries, *(s for found in results.several for s in found.summaries)]
    runs = any(standing.runs > 1 for s in shown for standing in s.games.values())
    training = (
        "where a student has several runs, runs are resampled as well and the interval includes the variance of training; "
        "where it has one, it does not"
        if runs
        else "they do not include the variance of training: every student has one run"
    )
    teaching = (
        f"""

The paper distils from plain DQN teachers. Ours: {told}."""
        if taught
        else ""
    )
    head = f"""# Reproducing the paper

Written by `{results.command}`; edit nothing here. Policy Distillation, [Rusu et al. 2015](https://arxiv.org/abs/1511.06295).

Our protocol: {results.protocol}, raw full-game return, seeds counted from the same first one for
teacher and students. The paper starts episodes from human play, which is not public. Compare levels, not decimals.{teaching}
"""
    for differences, names in results.earlier.items():
        head += f"\nNot made anew yet since the settings changed ({differences}): {', '.join(names)}.\n"
    if results.missing:
        head += "\nLeft out, as they are not made or not evaluated yet, or learned from other data than their mixes name now: "
        head += f"{', '.join(results.missing)}.\n"
    if results.collections:
        head += "\nLearned from another collection by the same recipe (another make of CPU plays other episodes): "
        head += "; ".join(f"{', '.join(names)} from {datasets}" for datasets, names in results.collections.items()) + ".\n"
    rows = [(game, who, summaries) for game, who in teachers.items()]
    rows += [(f"{who.game}, {_trained(who.card)} teacher", who, found) for who, found in beside]
    apart = (
        "\nA row that names its teacher's algorithm is of another experiment, whose students have the teacher's own network.\n"
        if beside
        else ""
    )
    ahead = f"""
By how many points of random-normalised per cent the students of one loss are ahead of another's, with 95 % intervals over
episodes, paired by seed where both have played the same; the paper's points are of raw per cents.

{tables.leads(results.leads, list(teachers)).markdown()}"""
    complete = {game for s in summaries for game in s.games} >= TABLE1.keys()
    asked = f"""
## What was asked of the students

The geometric mean of the random-normalised per cents below, over {", ".join(TABLE1)}, and the mean returns of the paper's own
students.

{tables.bars(summaries).markdown()}"""
    single = f"""
## Table 1: students of the teacher's size

Per cent of the teacher's raw return, as the paper has it, with 95 % intervals over episodes, {tables.PAIRED};
the paper's number in round brackets.
{apart}
{tables.table1(rows).markdown()}{ahead if results.leads else ""}{asked if complete else ""}
## Mean returns

Raw, [95 %] over episodes; {training}.

{tables.returns(summaries, teachers).markdown()}
## Compression, and everything else we trained

Random-normalised per cent of the teacher, (return - random) / (teacher - random), with 95 % intervals over episodes,
{tables.PAIRED}; {training}. The geometric mean is over the games here, the paper's over ten and of raw per cents.
A star: a game below 1 % counts as 1 %.{_states(summaries)}

{tables.over_games(summaries).markdown()}
"""
    typical = f"""
### Over all games, by episodes

Students of every game by their single episodes, random-normalised per cents, games weighing alike
([Agarwal et al. 2021](https://arxiv.org/abs/2108.13264)). IQM is the mean of the middle half, median and mean are of the games'
means, the optimality gap is how far episodes fall short of 100 % on average, their own noise included, and the last column the
chance in per cent that an episode beats one of the teacher's, ties counting a half: 50 is equal. Intervals: 95 % over the
training runs of each game, where there are several, and their episodes; what teacher and random score is taken as it is.

{tables.aggregates(results.aggregates).markdown()}
"""
    many = "".join(
        f"""
## One network for {", ".join(sorted({game for s in found.summaries for game in s.games}))}

A game's raw mean return in per cent of its teacher's, and their geometric mean, as the paper has it; beside it the geometric
mean of the random-normalised per cents, and the least of those. Intervals: 95 % over episodes, {tables.PAIRED};
{training}.{tables.of_steps(found.summaries, teachers)}

{tables.several(found.summaries).markdown()}{_asked(tables.bars_of_several(found.summaries))}
"""
        for found in results.several
    )
    following = f"""
## Following a teacher that is still learning

At each point of the teacher's learning the policy that did best on the seeds that choose labels a new version of the dataset,
and the student goes on learning from what that policy has labelled; teacher, best so far and student are scored on other seeds.
Change is the root mean square of the changes from point to point. The worst drop is below the best policy so far at the same
point, of the student also as a share of the teacher's. Over several seeds: their mean, least and greatest. At the end: the
teacher's last policy, its best and the final student on seeds that nothing else has seen. Kept is (student - random) /
(best - random) of these, with the 95 % bootstrap interval of the seeds' mean over episodes, paired by seed.

{tables.online(online).markdown()}{_asked(tables.bars_of_online(online))}
"""
    timing = f" Time: {results.timing}." if results.timing else ""
    network = "".join(
        f"""
### What the networks cost

With the outputs of {game.teacher.game}. A multiply-add counts as two operations.{timing}

{tables.costs(game.teacher, game.students).markdown()}"""
        for game in list(results.games.values())[:1]
    )
    before = (
        f"""
## Which held-out number predicts the score?

{tables.best_predictor(results.predicted)}
{tables.CORRELATED}

{tables.correlations(results.predicted.groups).markdown()}"""
        if results.predicted
        else ""
    )
    return (
        head
        + (single if summaries else "")
        + (typical if results.aggregates else "")
        + network
        + many
        + (following if online else "")
        + before
    )


def _asked(bars: tables.Table) -> str:
    """What was asked of these agents, where anything was."""
    return f"\nWhat was asked of them:\n\n{bars.markdown()}" if bars.cells else ""


def _states(summaries: Sequence[Summary]) -> str:
    """From how many states students have learned, those of student-driven rounds apart."""
    told = [("", [s for s in summaries if s.plain]), *((f"by {s.variant} ", [s]) for s in summaries if s.rounds)]
    learned = []
    for who, found in told:
        games: dict[int, list[str]] = {}
        for game in dict.fromkeys(game for s in found for game in s.games):
            games.setdefault(max(s.games[game].states for s in found if game in s.games), []).append(game)
        counts = ", ".join(f"{count:,} ({', '.join(names)})" for count, names in games.items() if count)
        if counts:
            learned.append(f"{who}{counts}")
    if not learned:
        return ""
    these = [s for _, found in told for s in found]
    onward = " Those of rounds went on from the weights of who acted in the last." if any(s.onward for s in these) else ""
    return f"\n\nStates that students learned from: {'; '.join(learned)}.{onward}{_gpus(these)}"


def _gpus(summaries: Sequence[Summary]) -> str:
    """How many students learned on which GPU."""
    standings = [standing for s in summaries for standing in s.games.values()]
    found = Counter(gpu for standing in standings for gpu in standing.gpus)
    told = " and ".join(f"{count} learned on a GPU ({gpu})" for gpu, count in found.items())
    return f" Of these {sum(standing.runs for standing in standings)} students {told}." if found else ""


def _trained(card: Mapping[str, Any]) -> str:
    """How a teacher was trained and whether it normalises, as its card has it."""
    algorithm = str(card["algorithm"]).upper() if "algorithm" in card else "unnamed algorithm"
    return f"{algorithm} with LayerNorm" if card["architecture"].get("layer_norm") else f"plain {algorithm}"

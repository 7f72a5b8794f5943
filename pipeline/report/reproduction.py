"""docs/reproducing-the-paper.md: the paper's tables beside ours, written by the report so that no number is typed by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from pipeline.report import tables
from pipeline.report.paper import LOSSES, TABLE1
from pipeline.report.predictors import Predicted
from pipeline.report.results import Results, Several
from pipeline.report.summary import Summary


def markdown(results: Results) -> str:
    """The page as text: agents of one game, then those of several, then those that followed a learning teacher."""
    chapters = [_head(results)]
    if results.summaries:
        chapters += [_table1(results), _returns(results), _compression(results)]
        if results.aggregates:
            chapters.append(_typical(results))
        chapters.append(_costs(results))
    chapters += [_several(found) for found in results.several]
    if results.online:
        chapters.append(_following(results))
    if results.predicted:
        chapters.append(_predictors(results.predicted))
    return "\n".join(chapters)


def _head(results: Results) -> str:
    taught = [*results.teachers.values(), *(other.teacher for other in results.beside)]
    told = "; ".join(f"{who.game}, {_trained(who.card)} ({who.parameters:,} parameters)" for who in taught)
    teaching = f"\n\nThe paper distils from plain DQN teachers. Ours: {told}." if taught else ""
    of = "" if results.summaries else ": several games in one network" if results.several else ": following a learning teacher"
    head = f"""# Reproducing the paper{of}

Written by `{results.command}`; edit nothing here. Policy Distillation, [Rusu et al. 2015](https://arxiv.org/abs/1511.06295).

Our protocol: {results.protocol}, raw full-game return, seeds counted from the same first one for
teacher and students. The paper starts episodes from human play, which is not public. Compare levels, not decimals.{teaching}
"""
    for differences, names in results.earlier.items():
        head += f"\nLearned or scored by earlier settings ({differences}) and not made anew yet: {', '.join(names)}.\n"
    if results.missing:
        head += (
            "\nLeft out, as they are not made or evaluated yet, or learned from other data or were scored otherwise than now: "
        )
        head += f"{', '.join(results.missing)}.\n"
    if results.collections:
        head += "\nLearned from another collection with the same settings (another make of CPU plays other episodes): "
        head += "; ".join(f"{', '.join(names)} from {datasets}" for datasets, names in results.collections.items()) + ".\n"
    return head


def _table1(results: Results) -> str:
    """Table 1, the losses' leads over each other, and what was asked."""
    summaries, teachers = results.summaries, results.teachers
    rows = [(game, who, summaries) for game, who in teachers.items()]
    others = [(f"{other.teacher.game}, {_trained(other.teacher.card)} teacher", other) for other in results.beside]
    rows += [(name, other.teacher, other.summaries) for name, other in others]
    apart = (
        "\nA row that names its teacher's algorithm is of another experiment, whose students have the teacher's own network.\n"
        if others
        else ""
    )
    ahead = f"""
By how many points of random-normalised per cent the students of one loss are ahead of another's, with 95 % intervals over
episodes, paired by seed where both have played the same; the paper's points are of raw per cents.

{tables.leads(results.leads, list(teachers), [(name, other.leads) for name, other in others if other.leads]).markdown()}
What they get wrong in held-out states: how often they prefer the teacher's action, and what their choices cost on average by
its Q-values (regret, in units of each game's own).

{tables.mistakes(results.games, "dqn", LOSSES).markdown()}"""
    asked = f"""
## What was asked of the students

The targets that this project has set itself: the geometric mean of the random-normalised per cents below, over
{", ".join(TABLE1)}, and the mean returns of the paper's own students.

{tables.bars(summaries).markdown()}"""
    complete = {game for s in summaries for game in s.games} >= TABLE1.keys()
    return f"""## Table 1: students of the teacher's size

Per cent of the teacher's raw return, as the paper has it, with 95 % intervals over episodes, {tables.PAIRED}
(where the teacher has played more, those do not count); the paper's number in round brackets.
{apart}
{tables.table1(rows).markdown()}{ahead if results.leads else ""}{asked if complete else ""}"""


def _returns(results: Results) -> str:
    return f"""## Mean returns

Raw, [95 %] over episodes; {tables.of_training(results.summaries)}.

{tables.returns(results.summaries, results.games).markdown()}"""


def _compression(results: Results) -> str:
    return f"""## Compression, and everything else we trained

Random-normalised per cent of the teacher, (return - random) / (teacher - random), with 95 % intervals over episodes,
{tables.PAIRED}; {tables.of_training(results.summaries)}.
The geometric mean is over the games here, the paper's over ten and of raw per cents.
A star: a game below 1 % counts as 1 %.{_states(results.summaries)}

{tables.over_games(results.summaries).markdown()}"""


def _typical(results: Results) -> str:
    return f"""### Over all games, by episodes

Students of every game by their single episodes, random-normalised per cents, games weighing alike
([Agarwal et al. 2021](https://arxiv.org/abs/2108.13264)).
{tables.TYPICAL}

{tables.aggregates(results.aggregates).markdown()}"""


def _costs(results: Results) -> str:
    """Of networks that play one game."""
    timing = f" Time: {results.timing}." if results.timing else ""
    students = [who for game in results.games.values() for who in game.students if "games" not in who.card]
    first = next(iter(results.games.values()))
    return f"""### What the networks cost

Each with the outputs of the first game of these in which it is. A multiply-add counts as two operations.{timing}

{tables.costs(first.teacher, students).markdown()}"""


def _several(several: Several) -> str:
    summaries = several.summaries
    return f"""## One network for {", ".join(several.games)}

A game's raw mean return in per cent of its teacher's, and their geometric mean, as the paper has it; beside it the geometric
mean of the random-normalised per cents, and the least of those. Intervals: 95 % over episodes, {tables.PAIRED};
{tables.of_training(summaries)}. A star: a game below 1 % counts as 1 %.{tables.of_steps(summaries, several.teachers)}

{tables.several(summaries).markdown()}
Mean returns, raw, [95 %] over episodes:

{tables.returns(summaries, several.games, {}).markdown()}{_asked(tables.bars_of_several(summaries))}"""


def _following(results: Results) -> str:
    unmade = [*results.missing, *chain.from_iterable(results.earlier.values())]
    return f"""## Following a teacher that is still learning

At each point of the teacher's learning, or where a student `rests` at each new best, the policy that did best on the seeds that
choose labels a new version of the dataset, and the student goes on learning from what that policy has labelled; teacher, best
so far and student are scored on other seeds.
{tables.followed(results.online)}

{tables.online(results.online).markdown()}{_asked(tables.bars_of_online(results.online, unmade))}"""


def _predictors(found: Predicted) -> str:
    return f"""## Which held-out number predicts the score?

{tables.best_predictor(found)}
{tables.CORRELATED}

{tables.correlations(found.groups).markdown()}"""


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

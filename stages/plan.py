"""plan: what of a params file's grid is done, what is left, and about how long that takes on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Final, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.agents.checkpoints import CARD, load_card
from pipeline.agents.device import Precision, exact, learning, prepare_to_learn
from pipeline.agents.muon import Muon
from pipeline.agents.networks import new_network
from pipeline.agents.policies import CHUNK, EpsilonGreedy, q_function, uniform_random
from pipeline.atari.envs import EnvConfig, SlotWorld
from pipeline.atari.rollout import rollout
from pipeline.datasets.schema import MANIFEST
from pipeline.rl.dqn import DqnLearner
from pipeline.rl.replay import Transitions
from stages import params as settings
from stages.current import earlier_following, episodes_at_points, made, made_with, scored_otherwise, too_few_states
from stages.grid import games_of_cell, games_of_mix, scored_as
from stages.history import History
from stages.paths import Layout
from stages.runlog import duration
from stages.score_online import is_kept

PROBE_SECONDS = 1.5
BACKWARD = 3.0
"""A training step costs about so many forward passes."""
UNKNOWN_STEPS = 2_000.0
"""Steps of an episode where nobody has played yet."""


DEAR: Final = ("train-teacher", "collect", "distill", "train-multitask", "train-history", "distill-online", "evaluate")
"""Stages that are planned for."""


class Job(NamedTuple):
    """One stage's run: `seconds` on this machine, about; None where nobody can tell, 0 where it is done or not asked for."""

    stage: str
    name: str
    done: bool
    seconds: float | None


class Machine:
    """How fast this machine is: each rate is measured when it is first asked for, a second or two. `wanted` are the jobs, by
    stage and name, that are asked for: by default all. `anew`, nothing is done.
    """

    def __init__(
        self, params: settings.Params, wanted: Collection[tuple[str, str]] | None = None, *, anew: bool = False
    ) -> None:
        self._params, self._wanted, self.anew = params, wanted, anew
        prepare_to_learn()  # as what learns does: a forward pass takes half as long
        self.forward = cache(self._forward)
        self.judge = cache(self._judge)
        self.orthogonalise = cache(self._orthogonalise)
        self.update = cache(self._update)
        self.emulate = cache(lambda game: _emulation(game, params.environment))

    def job(self, stage: str, name: str, done: bool, cost: Callable[[], float | None]) -> Job:
        """`cost` tells the seconds, if they are asked for. What is wanted is not done, whatever is there."""
        done = done and not self.anew
        if self._wanted is None:
            return Job(stage, name, done, 0.0 if done else cost())
        wanted = (stage, name) in self._wanted
        return Job(stage, name, done and not wanted, cost() if wanted else 0.0)

    def _forward(self, network: str, precision: Precision, batch: int) -> float:
        """States per second of learning's forward pass, on all cores."""
        compute = learning(torch.device("cpu"), precision)
        net = new_network(settings.network(network), {"game": 18}, compute.device, 0).eval()
        obs_BCHW = torch.zeros((batch, 4, 84, 84), dtype=torch.uint8)

        def forward() -> int:
            with torch.no_grad(), compute.autocast():
                return len(net(obs_BCHW))

        return _rate(forward)

    def _judge(self, network: str) -> float:
        """States per second of an agent that plays or labels."""
        cpu = torch.device("cpu")
        values = q_function(new_network(settings.network(network), {"game": 18}, cpu, 0).eval(), exact(cpu))
        obs_BCHW = np.zeros((CHUNK, 4, 84, 84), dtype=np.uint8)
        return _rate(lambda: len(values(obs_BCHW)))

    def _orthogonalise(self, network: str, precision: Precision) -> float:
        """Seconds of Muon's own work in an update."""
        compute = learning(torch.device("cpu"), precision)
        net = new_network(settings.network(network), {"game": 18}, compute.device, 0)
        optimizer = Muon.of(net, net.parameters(), lr=0.0, compute=compute)
        for weights in net.parameters():
            weights.grad = torch.randn_like(weights)

        def step() -> int:
            optimizer.step()
            return 1

        return 1 / _rate(step)

    def _update(self, preset_name: str, network: str) -> float:
        """Seconds of a DQN's update: what its optimiser and its small minibatches take, no forward pass tells."""
        preset: settings.TeacherPreset = self._params.teacher_presets[preset_name]
        assert preset.dqn is not None
        small = replace(preset.dqn, replay=8 * preset.dqn.envs, replay_start=2 * preset.dqn.envs)
        spec = settings.network(network)
        learner = DqnLearner(small, 1, spec, {"game": 18}, learning(torch.device("cpu"), preset.precision or "bfloat16"), 0)
        obs_MCHW = np.zeros((small.minibatch, spec.stack, 84, 84), dtype=np.uint8)
        zero_M = np.zeros(small.minibatch, dtype=np.float32)
        batch = Transitions(obs_MCHW, zero_M.astype(np.int64), zero_M, zero_M, obs_MCHW.copy())

        def update() -> int:
            learner.update(batch)
            return 1

        return 1 / _rate(update)

    def play(self, game: str, *networks: str) -> float:
        """Seconds per step."""
        return float(1 / self.emulate(game) + sum(1 / self.judge(network) for network in networks))

    def learn(self, preset_name: str, network: str, game: str) -> float:
        """Seconds per step of learning from reward."""
        preset: settings.TeacherPreset = settings.pick(self._params.teacher_presets, preset_name, "teacher preset")
        passes = 1 + BACKWARD * preset.pqn.epochs if preset.pqn is not None else 1
        updates = self.update(preset_name, network) / preset.dqn.steps_per_update if preset.dqn is not None else 0.0
        return float(1 / self.emulate(game) + passes / self.forward(network, preset.precision or "bfloat16", 64) + updates)

    def episodes(self, layout: Layout, game: str, count: int, *networks: str) -> float:
        """Seconds of so many episodes."""
        return count * steps_of_episode(layout, game) * self.play(game, *networks) if count else 0.0

    def teach(self, layout: Layout, game: str, preset: str, network: str, steps: int, every: int, episodes: int) -> float:
        """Seconds of learning from reward, with so many episodes that choose the best at every so many steps."""
        played = self.episodes(layout, game, -(-steps // every) * episodes, network)
        return steps * self.learn(preset, network, game) + played

    def distil(self, variant: settings.StudentParams) -> float:
        """Seconds of all updates of a variant."""
        preset = settings.pick(self._params.presets, variant.preset, "preset")
        samples = variant.updates * preset.batch
        seconds = float(BACKWARD * samples / self.forward(variant.network, preset.precision, preset.batch))
        optimising = self.orthogonalise(variant.network, preset.precision) if preset.optimizer == "muon" else 0.0
        return seconds + variant.updates * optimising


def job_of(command: str) -> tuple[str, str]:
    """Stage and name of the job that a stage's command in dvc.yaml does."""
    _, stage, *words = command.split()
    values = [word for word in words if not word.startswith("-")]
    return stage, ("/" if stage == "evaluate" else "-").join(values)


def told(jobs: Collection[Job], unknown: int = 0) -> str:
    """About how long these take, one after another, and so many more of which nobody can tell."""
    beside = " and what is unknown" if unknown or any(job.seconds is None for job in jobs) else ""
    return f"about {duration(sum(job.seconds or 0.0 for job in jobs))}{beside} on this machine"


def jobs(
    layout: Layout, params: settings.Params, wanted: Collection[tuple[str, str]] | None = None, *, anew: bool = False
) -> Iterator[Job]:
    """Everything that the grid asks for; rates are measured as far as something of it, or of what is `wanted`, is left. `anew`
    it is as if there were nothing.
    """
    machine = Machine(params, wanted, anew=anew)
    cells = params.cells()
    labelling = {}
    for game in dict.fromkeys(game for cell in cells for game in games_of_cell(layout, params, cell)):
        trained = (layout.teacher(game) / CARD).is_file()
        labelling[game] = str(load_card(layout.teacher(game))["network"]) if trained else "pqn"
        yield machine.job("train-teacher", game, trained, partial(_teaching, layout, params, machine, game))
        yield _evaluation(layout, params, machine, f"random/{game}", game)
        yield _evaluation(layout, params, machine, f"teachers/{game}", game, labelling[game])
    unfinished = [c for c in cells if c.kind == "students" and (machine.anew or not made(layout, params, c))]
    read = {name for cell in unfinished for name in params.mixes[cell.mix]}
    for name in dict.fromkeys(name for cell in cells for name in settings.pick(params.mixes, cell.mix, "mix")):
        there = (layout.dataset(name) / MANIFEST).is_file()
        if not there and name not in read:
            continue  # only finished students have read it: nobody needs it again
        ours = name in params.datasets
        done = there and not (ours and too_few_states(layout, params, name))
        if ours or not done:
            yield _collection(params, machine, name, done, labelling)
    for cell in cells:
        yield from _cell(layout, params, machine, cell)
    for game, online in params.online.items():
        if game not in labelling:
            yield _evaluation(layout, params, machine, f"random/{game}", game)
        for seed in online.seeds:
            yield from _followed(layout, params, machine, game, seed)


def _teaching(layout: Layout, params: settings.Params, machine: Machine, game: str) -> float | None:
    """Seconds of a teacher's training; None for one that params.yaml does not have."""
    if (teacher := params.teachers.get(game)) is None:
        return None
    chosen = machine.teach(
        layout, game, teacher.preset, teacher.network, teacher.steps, teacher.select_every, teacher.select_episodes
    )
    return chosen + machine.episodes(layout, game, teacher.gate_episodes, teacher.network)


def _collection(params: settings.Params, machine: Machine, name: str, done: bool, labelling: Mapping[str, str]) -> Job:
    """`labelling` are the networks of games' teachers."""

    def cost() -> float | None:
        if name not in params.datasets:  # another experiment's
            return None
        dataset = params.datasets[name]
        game = dataset.game or name
        actor = params.students.get(_variant(dataset.actor or ""))
        labels = labelling.get(game, "pqn")
        return dataset.states * machine.play(game, labels, *([actor.network] if actor else []))

    return machine.job("collect", name, done, cost)


def _evaluation(
    layout: Layout,
    params: settings.Params,
    machine: Machine,
    agent: str,
    game: str,
    *networks: str,
    name: str | None = None,
    anew: bool = False,
) -> Job:
    """`name` is what the agent's scores are called, where that is not its own."""
    name = name or agent
    wanted = params.evaluation.episodes_of("teacher" if agent.startswith("teachers/") else "student", game)
    played = 0
    if layout.scores(name).is_file() and not (anew or machine.anew) and not scored_otherwise(layout, params, agent, name, game):
        played = int(json.loads(layout.scores(name).read_text())["episodes"])
    left = max(0, wanted - played)
    return machine.job("evaluate", name, not left, lambda: machine.episodes(layout, game, left or wanted, *networks))


def _cell(layout: Layout, params: settings.Params, machine: Machine, cell: settings.Cell) -> Iterator[Job]:
    """A student or a baseline, and its evaluations."""
    done = made(layout, params, cell)
    played = games_of_cell(layout, params, cell)
    if cell.kind == "multitask":
        baseline: settings.MultitaskParams = settings.pick(params.multitask, cell.variant, "baseline")
        network, stage = baseline.network, "train-multitask"
    else:
        variant: settings.StudentParams = settings.pick(params.students, cell.variant, "student")
        network, stage = variant.network, "distill"

    def cost() -> float:
        if cell.kind == "multitask":
            return multitask_seconds(layout, machine, baseline, games_of_mix(layout, params, cell.mix))
        shown = games_of_mix(layout, params, cell.mix) if variant.frozen else played
        validations = -(-variant.updates // settings.pick(params.presets, variant.preset, "preset").validate_every)
        episodes = validations * variant.play_episodes
        return machine.distil(variant) + sum(machine.episodes(layout, game, episodes, network) for game in shown)

    yield machine.job(stage, cell.name, done, cost)
    for game in played:
        name = scored_as(cell.agent, played, game)
        yield _evaluation(layout, params, machine, cell.agent, game, network, name=name, anew=not done)


def multitask_seconds(layout: Layout, machine: Machine, baseline: settings.MultitaskParams, games: Sequence[str]) -> float:
    """What a baseline of these games takes, its selections included."""
    return sum(
        machine.teach(
            layout,
            game,
            baseline.presets.get(game, baseline.preset),
            baseline.network,
            baseline.steps,
            baseline.select_every,
            baseline.select_episodes,
        )
        for game in games
    )


def _followed(layout: Layout, params: settings.Params, machine: Machine, game: str, seed: int) -> Iterator[Job]:
    """A history, the student that follows it, and their evaluations."""
    name, online = f"{game}-{seed}", params.online[game]
    told: settings.HistoryParams = settings.pick(params.history, game, "history")
    variant: settings.StudentParams = settings.pick(params.students, online.student, "student")
    points = -(-told.steps // told.every)

    def learning() -> float:
        return machine.teach(layout, game, told.preset, told.network, told.steps, told.every, told.select_episodes)

    def following() -> float:
        lessons = len(recorded.bests()) if enough and online.rests else points
        played = ((told, points), (variant, lessons))  # who rests has the same episodes
        scores = sum(machine.episodes(layout, game, at * max(0, lacking), who.network) for who, at in played)
        if there and is_kept(layout, name):
            return scores
        seconds = (lessons * online.states + online.final_states) * machine.play(game, told.network)
        return seconds + machine.distil(variant) * (lessons + online.final_updates / variant.updates) + scores

    there = not machine.anew and (layout.online(name) / CARD).is_file() and not earlier_following(layout, params, game, seed)
    lacking = online.score_episodes - (episodes_at_points(layout.online(name)) if there else 0)
    recorded = History(layout.history(name))
    enough = bool(recorded.points) and recorded.points[-1].steps >= told.steps and recorded.made == made_with(params, game)
    ends = [
        _evaluation(layout, params, machine, f"history/{name}/{which}", game, told.network, anew=not (enough or there))
        for which in ("best", "last")
    ]
    yield machine.job("train-history", name, enough or (there and all(job.done for job in ends)), learning)  # who reads it
    yield machine.job("distill-online", name, there and lacking <= 0, following)
    yield from ends
    yield _evaluation(layout, params, machine, f"online/{name}", game, variant.network, anew=not there)


def _variant(actor: str) -> str:
    """students/MIX/VARIANT-SEED -> VARIANT."""
    return actor.rsplit("/", 1)[-1].rsplit("-", 1)[0]


def steps_of_episode(layout: Layout, game: str) -> float:
    """Steps of the teacher's episodes, or of a recorded one's at its best, as far as they have been evaluated, or else of the
    random agent's.
    """
    best = (path.relative_to(layout.data) for path in sorted(layout.data.glob(f"history/{game}-*/best")))
    played = (layout.episodes(str(agent)) for agent in (f"teachers/{game}", *best, f"random/{game}"))
    path = next((path for path in played if path.is_file()), None)
    return float(np.mean(pq.read_table(path)["steps"].to_numpy())) if path else UNKNOWN_STEPS


def _emulation(game: str, environment: EnvConfig) -> float:
    """Steps per second of a random agent."""
    width = 4  # to measure, fewer than play at once: each takes a while to start
    world = SlotWorld(game, environment, width=width)
    steps = rollout(world, EpsilonGreedy(uniform_random(2), 1.0), iter(range(10**6)))
    next(steps)
    return width * _rate(lambda: int(next(steps).active_B.any()))


def _rate(work: Callable[[], int]) -> float:
    """What `work` returns, per second."""
    work()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < PROBE_SECONDS:
        done += work()
    return done / (time.perf_counter() - began)

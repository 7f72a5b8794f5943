"""params.yaml, read as DVC reads it (YAML 1.2) and validated strictly: a missing, unknown or mistyped key is one clear line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.agents.device import Compute, Precision, learning, pick_device
from pipeline.agents.networks import NETWORKS, NetworkSpec
from pipeline.atari.envs import EnvConfig
from pipeline.atari.games import find_game
from pipeline.distill.losses import LossName
from pipeline.distill.offline import DistillConfig, Objective
from pipeline.evaluate import PROTOCOLS, Protocol
from pipeline.rl.dqn import DqnConfig, DqnLearner
from pipeline.rl.learner import Learner
from pipeline.rl.pqn import PqnConfig, PqnLearner
from stages.paths import Layout


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TeacherPreset(Section):
    """An algorithm with its settings, in the section of the same name; `seed_once` as `envs.VectorWorld` has it. It learns in
    bfloat16, where the device has instructions for that, unless `precision` says float32.
    """

    algorithm: Literal["pqn", "dqn"]
    seed_once: bool | None = None
    precision: Precision | None = None
    pqn: PqnConfig | None = None
    dqn: DqnConfig | None = None

    @model_validator(mode="after")
    def _one_section(self) -> Self:
        given = [name for name in ("pqn", "dqn") if getattr(self, name) is not None]
        if given != [self.algorithm]:
            raise ValueError(
                f"algorithm {self.algorithm} wants the section {self.algorithm} and no other: it has {given or 'none'}"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """All of it in one flat dictionary, as a card records it."""
        fields = self.model_dump(exclude_none=True)
        return {**fields.pop(fields.pop("algorithm")), **fields}

    @property
    def heeds_budget(self) -> bool:
        """Whether what it does at a step depends on how many there will be: its schedules end where its budget does."""
        return self.dqn is None or self.dqn.learning_rate_end is not None

    def compute(self, device_name: str) -> Compute:
        """Where and in which precision it learns."""
        return learning(pick_device(device_name), self.precision or "bfloat16")

    def learner(self, budget: int, spec: NetworkSpec, heads: Mapping[str, int], compute: Compute, seed: int) -> Learner:
        """A fresh agent of this preset."""
        if self.pqn is not None:
            return PqnLearner(self.pqn, budget, spec, heads, compute, seed)
        assert self.dqn is not None
        return DqnLearner(self.dqn, budget, spec, heads, compute, seed)


class TeacherParams(Section):
    preset: str
    network: str
    steps: int = Field(gt=0)
    seed: int = Field(ge=0, lt=100)
    select_every: int = Field(gt=0)
    select_episodes: int = Field(gt=0)
    gate_return: float
    gate_episodes: int = Field(gt=0)
    recipe: int


class DatasetParams(Section):
    """A dataset, of the game that it is named after where it names none; `actor` acts in the teacher's place."""

    game: str | None = None
    actor: str | None = None
    states: int = Field(gt=0)
    epsilon: float = Field(ge=0, le=1)
    seed: int = Field(ge=0, lt=100)
    recipe: int


ACTOR: Final = "actor"
"""What `begins_with` calls the agent that played the last dataset of the mix."""


class StudentParams(Section):
    """A named variant.

    Of mixes of several games: `temperatures` of games that want another, `balanced` losses, `interleave` (see
    `distill.lesson`). `begins_with` is an agent whose weights it begins with and whose games it keeps, `actor` the one that
    played the last dataset of its mix; with `frozen` they stay as they are. `play_episodes` of each game are played at every
    validation, for the curve alone.
    """

    loss: LossName
    temperature: float = Field(gt=0)
    per_gap: bool = False
    temperatures: dict[str, float] = {}
    balanced: bool = False
    feature_weight: float = Field(default=0.0, ge=0)
    network: str
    preset: str
    updates: int = Field(gt=0)
    interleave: Literal["episode", "together"] | Annotated[int, Field(gt=0)] = "together"
    begins_with: str | None = None
    frozen: bool = False
    play_episodes: int = Field(default=0, ge=0)
    recipe: int

    def objective(self) -> Objective:
        """What the variant learns."""
        return Objective(
            loss=self.loss,
            temperature=self.temperature,
            per_gap=self.per_gap,
            temperatures=self.temperatures,
            balanced=self.balanced,
            feature_weight=self.feature_weight,
        )


class MultitaskParams(Section):
    """A baseline that learns a mix's games from reward: each game has `steps`, and its own preset where `presets` has one."""

    preset: str
    presets: dict[str, str] = {}
    network: str
    steps: int = Field(gt=0)
    select_every: int = Field(gt=0)
    select_episodes: int = Field(gt=0)
    recipe: int


MOST_POINTS: Final = 99
"""Of a history: each point's data has a root seed of its own, and so has what the student learns from in the end."""


class HistoryParams(Section):
    """A learner whose snapshots are kept: every so many steps, with their mean return over `select_episodes`, which choose the
    best.
    """

    preset: str
    network: str
    steps: int = Field(gt=0)
    every: int = Field(gt=0)
    select_episodes: int = Field(gt=0)
    recipe: int

    @model_validator(mode="after")
    def _some_and_few_enough(self) -> Self:
        points = -(-self.steps // self.every)  # the last when the steps are spent
        if not 2 <= points <= MOST_POINTS:
            raise ValueError(
                f"{points:,} snapshots are not 2 to {MOST_POINTS}: every is {self.every:,} of {self.steps:,} steps"
            )
        return self


class OnlineParams(Section):
    """A student, a variant of `students`, that follows a history: at each point the best policy so far plays a version of a
    dataset, `states` with `epsilon`, and the student makes the variant's `updates` on that policy's versions, the last
    `window` of them; where it has only just become the best, with `shrink` of its weights and the rest of fresh ones, and where
    it has not, if the student `rests`, none of all this. Then everybody's curve has a score of `score_episodes`. After the last
    point the final best plays `final_states`, for `final_updates`. The preset's schedule spans each of these. `seeds` are what
    the report shows.
    """

    student: str
    states: int = Field(gt=0)
    epsilon: float = Field(ge=0, le=1)
    window: int = Field(gt=0)
    shrink: float = Field(default=1.0, ge=0, le=1)
    rests: bool = False
    score_episodes: int = Field(gt=1)
    final_states: int = Field(gt=0)
    final_updates: int = Field(gt=0)
    seeds: list[Annotated[int, Field(ge=0, lt=100)]] = Field(min_length=1)
    recipe: int

    def following(self) -> dict[str, Any]:
        """All that decides how a student follows, but for its recipe; what is not set is not told."""
        return self.model_dump(exclude={"seeds", "score_episodes", "recipe"}, exclude_defaults=True)


class GridParams(Section):
    """What the report shows: of each of the mixes (by default the one it is named after) every student, and every baseline that
    learns from reward, under every seed.
    """

    mixes: list[str] | None = None
    students: list[str] = []
    baselines: list[str] = []
    seeds: list[Annotated[int, Field(ge=0, lt=100)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _someone(self) -> Self:
        if not self.students and not self.baselines:
            raise ValueError("it names no students and no baselines")
        return self


class Cell(NamedTuple):
    """A student of the grid, or a baseline."""

    kind: Literal["students", "multitask"]
    mix: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """MIX/VARIANT-SEED"""
        return f"{self.mix}/{self.variant}-{self.seed}"

    @property
    def agent(self) -> str:
        """students/MIX/VARIANT-SEED"""
        return f"{self.kind}/{self.name}"


class EvaluationParams(Section):
    """`episodes` are those of an agent, `game_episodes` those of games whose returns spread more; `teacher_episodes` those of
    teachers, by which students are measured as far as both have played the same seeds.
    """

    episodes: int = Field(gt=0)
    game_episodes: dict[str, Annotated[int, Field(gt=0)]] = {}
    teacher_episodes: int | None = Field(default=None, gt=0)
    epsilon: float = Field(ge=0, le=1)
    width: int = Field(gt=0)
    seed: int = Field(ge=0, lt=100)
    recipe: int

    @model_validator(mode="after")
    def _games_exist(self) -> Self:
        for game in self.game_episodes:
            if find_game(game).name != game:
                raise ValueError(f"game_episodes: write {find_game(game).name}, not {game}")
        return self

    def episodes_of(self, role: str, game: str) -> int:
        """How many episodes an agent of this role plays of a game."""
        every = self.game_episodes.get(game, self.episodes)
        return (self.teacher_episodes or every) if role == "teacher" else every


class Params(Section):
    """All of a params file. `zoo` holds the teachers, `store` the datasets where another experiment has them already; `beside`
    are folders of other experiments, whose students `report --paper` shows as well.
    """

    zoo: str
    store: str = "data/datasets"
    beside: list[str] = []
    environment: EnvConfig
    teachers: dict[str, TeacherParams]
    teacher_presets: dict[str, TeacherPreset]
    datasets: dict[str, DatasetParams]
    mixes: dict[str, Annotated[list[str], Field(min_length=1)]]
    students: dict[str, StudentParams]
    multitask: dict[str, MultitaskParams] = {}
    history: dict[str, HistoryParams] = {}
    online: dict[str, OnlineParams] = {}
    presets: dict[str, DistillConfig]
    grid: dict[str, GridParams]
    evaluation: EvaluationParams

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        if both := sorted(self.students.keys() & self.multitask.keys()):
            raise ValueError(
                f"{', '.join(both)} is a student and a baseline: the report would take them for one, rename either"
            )
        return self

    def protocol(self, name: str | None = None) -> Protocol:
        """That of `environment` and `evaluation.epsilon`, or one of `PROTOCOLS` by name, with the rest of `environment`."""
        if name is not None:
            epsilon, changes = PROTOCOLS[name]
            return Protocol(name=name, epsilon=epsilon, environment=replace(self.environment, **changes))
        own = Protocol(name="own", epsilon=self.evaluation.epsilon, environment=self.environment)
        known = (self.protocol(name) for name in PROTOCOLS)
        return next((p for p in known if (p.epsilon, p.environment) == (own.epsilon, own.environment)), own)

    def mix_and_variant(self, name: str, what: str) -> tuple[str, str]:
        """The two parts of MIX/VARIANT. ValueError where one is missing."""
        mix, _, variant = name.partition("/")
        if not variant:
            raise ValueError(f"{what} {name!r} names no mix: write MIX/VARIANT, for example {next(iter(self.mixes))}/{name}")
        return mix, variant

    def cells(self) -> list[Cell]:
        """Every student and baseline of the grid, once, in its order."""
        kinds: tuple[Literal["students", "multitask"], ...] = ("students", "multitask")
        every = (
            Cell(kind, mix, variant, seed)
            for key, grid in self.grid.items()
            for mix in grid.mixes or [key]
            for kind, variants in zip(kinds, (grid.students, grid.baselines), strict=True)
            for variant in variants
            for seed in grid.seeds
        )
        return list(dict.fromkeys(every))


def load(path: Path) -> Params:
    """Read and validate; ValueError has one line per fault, naming the key, the fault and what is allowed."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: run this in the project's folder or give --params FILE")
    try:
        raw = json.dumps(YAML(typ="safe", pure=True).load(path.read_text()))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{where} is not valid YAML: {str(error).splitlines()[0]}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds more than plain keys and values ({error})") from None
    if raw == "null":
        raise ValueError(f"{path} is empty: `pd-pipeline new GAME` writes one to begin with")
    try:
        return Params.model_validate_json(raw)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {_fault(e)}" for e in error.errors(include_url=False))) from None


def load_project(path: Path) -> tuple[Layout, Params]:
    """A params file, and where things lie in its folder. ValueError as `load` has it."""
    params = load(path)
    return Layout(root=path.parent, zoo=path.parent / params.zoo, store=path.parent / params.store), params


def _fault(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the file"
    match error["type"]:
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{key} is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{key} is unknown: remove it or correct its name"
        case "value_error":
            return f"{key}: {error['ctx']['error']}"
        case _:
            return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def recipe_of(layout: Layout, params: Params, name: str) -> DatasetParams | None:
    """How a dataset is collected, as these params have it, or those of the experiment whose `store` they read; or None."""
    if name in params.datasets:
        return params.datasets[name]
    theirs = described_in(layout, params, name)
    return load(theirs).datasets.get(name) if theirs.is_file() else None


def described_in(layout: Layout, params: Params, name: str) -> Path:
    """The params file that says how a dataset is collected: this one, or that of the experiment whose `store` these read."""
    elsewhere = None if name in params.datasets else layout.store
    return (elsewhere.parent.parent if elsewhere else layout.root) / "params.yaml"


def pick(section: dict[str, Any], key: str, name: str) -> Any:
    """`section[key]`; ValueError lists what there is."""
    if key not in section:
        remedy = f"; `pd-pipeline new {key}` begins an experiment with it" if name == "teacher" else ""
        raise ValueError(f"params.yaml has no {name} {key!r}: it has {', '.join(section) or 'none'}{remedy}")
    return section[key]


def network(name: str) -> NetworkSpec:
    """The architecture of that name. ValueError lists them."""
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose {', '.join(NETWORKS)}")
    return NETWORKS[name]


def check_recipe(key: str, given: int, code: int) -> None:
    """A stage's recipe in params.yaml must be the code's: DVC reruns a stage when it is raised, and only then."""
    if given != code:
        remedy = f"set it to {code} in params.yaml, or check out the version that made it"
        raise ValueError(f"{key}.recipe is {given}, this version's recipe is {code}: {remedy}")

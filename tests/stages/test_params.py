"""params.yaml: what ships is valid; every kind of fault is one line that names the key."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import params
from tests.fakes import edited_params

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "params.yaml", *sorted(ROOT.glob("experiments/*/params.yaml"))]


def edited(tmp_path: Path, change: Any) -> Path:
    with edited_params(tmp_path) as raw:
        change(raw)
    return tmp_path / "params.yaml"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.parent.name)
def test_what_ships_is_valid_and_consistent(path: Path) -> None:
    loaded = params.load(path)
    for student in loaded.students.values():
        params.network(student.network)
        assert student.preset in loaded.presets
    for teacher in loaded.teachers.values():
        assert teacher.preset in loaded.teacher_presets
    for key, grid in loaded.grid.items():
        assert set(grid.students) <= loaded.students.keys()
        for mix in grid.mixes or [key]:
            assert set(loaded.mixes[mix]) <= loaded.datasets.keys() or loaded.store != "data/datasets"


def test_a_dataset_is_collected_as_the_experiment_says_that_keeps_it() -> None:
    layout, loaded = params.load_project(ROOT / "experiments/multigame/params.yaml")
    theirs = params.load(ROOT / "experiments/paper/params.yaml").datasets
    assert "Pong" not in loaded.datasets
    assert params.recipe_of(layout, loaded, "Pong") == theirs["Pong"]
    assert params.recipe_of(layout, loaded, "Tetris") is None


def test_grids_that_show_nobody_and_names_of_two_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"grid\.pong: it names no students and no baselines"):
        params.load(edited(tmp_path, lambda raw: raw.update(grid={"pong": {"seeds": [0]}})))
    baseline = {"preset": "pqn-atari", "network": "pqn", "steps": 1, "select_every": 1, "select_episodes": 1, "recipe": 1}
    with pytest.raises(ValueError, match="kl-net2 is a student and a baseline"):
        params.load(edited(tmp_path, lambda raw: raw.update(multitask={"kl-net2": baseline})))


def test_the_published_preset_is_as_published() -> None:
    """Rusu et al. 2015, Section 3: RMSProp at 1e-4 to 1e-3, tau 0.01, epsilon 0.05, 10 hours of 15 decisions a second."""
    loaded = params.load(ROOT / "experiments/paper/params.yaml")
    student, preset = loaded.students["kl-net2-rusu"], loaded.presets["rusu2015"]
    assert (student.loss, student.temperature, student.preset) == ("kl", 0.01, "rusu2015")
    assert (preset.optimizer, preset.batch, preset.precision, preset.schedule) == ("rmsprop", 32, "float32", "constant")
    assert 1e-4 <= preset.learning_rate <= 1e-3
    assert (preset.squared_decay, preset.gradient_decay) == (0.95, 0.95)  # these and the next, DQN's: Mnih et al. 2015
    assert preset.squared_minimum == pytest.approx(0.01 / preset.batch**2, rel=0.05)  # of means, not of sums
    assert (preset.warmup_updates, preset.standardise) == (0, False)
    assert preset.max_grad_norm >= 1e9
    taught = [game for mix in loaded.grid["published"].mixes or [] for game in loaded.mixes[mix]]
    assert taught == ["Pong"]  # `fast` may have more states
    for game in taught:
        assert (loaded.datasets[game].states, loaded.datasets[game].epsilon) == (10 * 60 * 60 * 15, 0.05)
    assert {loaded.datasets[game].epsilon for game in ("Breakout", "Freeway", "Pong", "Qbert")} == {0.05}
    assert (loaded.environment.noop_max, loaded.environment.max_episode_frames) == (30, 30 * 60 * 60)


def test_schedules_that_end_with_the_budget_heed_it() -> None:
    heeds = {
        (experiment, name): preset.heeds_budget
        for experiment in ("online", "same-network")
        for name, preset in params.load(ROOT / f"experiments/{experiment}/params.yaml").teacher_presets.items()
    }
    assert [key for key, heeded in heeds.items() if heeded] == [("same-network", "dqn-fast")]
    assert params.load(ROOT / "params.yaml").teacher_presets["pqn-atari"].heeds_budget


def test_the_constants_of_rmsprop_are_its_own(tmp_path: Path) -> None:
    constants = {"squared_decay": 0.95, "gradient_decay": 0.95, "squared_minimum": 1e-5}
    with pytest.raises(ValueError, match=r"presets\.fast: squared_decay, .* are rmsprop's, all three: the optimizer is adam"):
        params.load(edited(tmp_path, lambda raw: raw["presets"]["fast"].update(squared_decay=0.95)))
    del constants["squared_minimum"]
    with pytest.raises(ValueError, match=r"all three: the optimizer is rmsprop"):
        params.load(edited(tmp_path, lambda raw: raw["presets"]["fast"].update(constants, optimizer="rmsprop")))
    assert not params.load(ROOT / "params.yaml").presets["fast"].settings().keys() & constants.keys()


@pytest.mark.parametrize(("told", "wanted"), [("Brekout", "Breakout"), ("breakout", "write Breakout, not breakout")])
def test_episodes_of_no_game(tmp_path: Path, told: str, wanted: str) -> None:
    with edited_params(tmp_path) as raw:
        raw["evaluation"]["game_episodes"] = {told: 600}
    with pytest.raises(ValueError, match=wanted):
        params.load(tmp_path / "params.yaml")


def test_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation.epsilon is missing$"):
        params.load(edited(tmp_path, lambda raw: raw["evaluation"].pop("epsilon")))


def test_an_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"students.kl-net2.temprature is unknown"):
        params.load(edited(tmp_path, lambda raw: raw["students"]["kl-net2"].update(temprature=1)))
    with pytest.raises(ValueError, match=r"presets.fast.batchsize is unknown"):
        params.load(edited(tmp_path, lambda raw: raw["presets"]["fast"].update(batchsize=1)))


def test_a_mistyped_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"datasets.Pong.states = '1e5': .*integer"):
        params.load(edited(tmp_path, lambda raw: raw["datasets"]["Pong"].update(states="1e5")))
    with pytest.raises(ValueError, match=r"students.kl-net2.loss = 'kll': .*'kl', 'nll', .*"):
        params.load(edited(tmp_path, lambda raw: raw["students"]["kl-net2"].update(loss="kll")))
    with pytest.raises(ValueError, match=r"choose a divisor"):
        params.load(edited(tmp_path, lambda raw: raw["teacher_presets"]["pqn-atari"]["pqn"].update(minibatch=100)))


def test_a_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--params FILE"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        params.load(tmp_path / "params.yaml")


@settings(max_examples=60)
@given(
    text=st.text(max_size=60)
    | st.sampled_from(["null", "[]", "3", "a: {b: 1}", "zoo: 3", "? [1]\n: 2", "!!python/object:os.system {}"])
)
def test_any_text_is_valid_or_a_value_error(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.mktemp("p") / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml"):
        params.load(path)


def test_a_recipe_must_be_the_codes() -> None:
    with pytest.raises(ValueError, match=r"datasets.Pong.recipe is 2, this version's recipe is 1"):
        params.check_recipe("datasets.Pong", 2, 1)
    params.check_recipe("datasets.Pong", 1, 1)


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ValueError, match="it has a, b"):
        params.pick({"a": 1, "b": 2}, "c", "student")
    with pytest.raises(ValueError, match="choose dqn, net1"):
        params.network("net9")

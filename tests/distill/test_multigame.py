"""One student of two games that want opposite actions in the same states; turns, extension, and what does not go together."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.agents.gradients import trunk_cosines
from pipeline.agents.networks import NetworkSpec, QNetwork, new_network
from pipeline.datasets import loader
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.distill.lesson import Turns
from pipeline.distill.losses import LossName, blind_loss
from pipeline.distill.offline import Objective, Student, train
from tests.distill.test_offline import CONFIG, CPU
from tests.fakes import corridor_dataset, mirror_dataset

SPEC = NetworkSpec(channels=(4, 4, 4), hidden=16, controller=8)
GAMES = ("Corridor", "Mirror")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("pair")
    corridor_dataset(folder / "corridor", 60)
    mirror_dataset(folder / "mirror", 60)
    return [open_dataset(folder / "corridor"), open_dataset(folder / "mirror")]


def student(
    pair: Sequence[Dataset], loss: LossName = "kl", updates: int = 300, *, config: Any = CONFIG, **options: Any
) -> Student:
    warmer = {"Mirror": 0.5} if any(d.game == "Mirror" for d in pair) else {}
    objective = options.pop("objective", Objective(loss=loss, temperature=0.05, temperatures=warmer))
    return Student(config, objective, SPEC, pair, updates, CPU, 0, **options)


@pytest.mark.parametrize(
    ("loss", "interleave"),
    [("kl", "episode"), ("nll", "episode"), ("kl", 1), ("normalised-mse", 1), ("kl", "together"), ("nll", "together")],
)
def test_one_trunk_learns_both_games(pair: list[Dataset], loss: LossName, interleave: Any) -> None:
    learned = student(pair, loss, interleave=interleave)
    *_, last = train(learned)
    for game in GAMES:
        assert last.metrics[f"agreement_{game}"] == 1.0
    assert last.metrics["kl"] == pytest.approx(np.mean([last.metrics[f"kl_{game}"] for game in GAMES]))
    assert -1.0 <= last.metrics["cosine_Corridor_Mirror"] <= 1.0
    assert sum(last.metrics[f"share_{game}"] for game in GAMES) == pytest.approx(1.0)


def test_raw_mse_belongs_to_the_game_of_large_values_and_balance_mends_it(pair: list[Dataset]) -> None:
    shares = []
    for balanced in (False, True):
        objective = Objective(loss="mse", temperature=0.05, balanced=balanced)
        first = next(train(student(pair, updates=20, objective=objective, interleave=1))).metrics
        shares.append(first["share_Mirror"])
    assert shares[0] > 0.95
    assert 0.3 < shares[1] < 0.7


def test_a_balanced_loss_is_in_units_of_the_blind_students(pair: list[Dataset]) -> None:
    raw, balanced = (student(pair, objective=Objective(loss="kl", temperature=0.05, balanced=b)) for b in (False, True))
    one, other = raw.validate(), balanced.validate()
    for game, lesson in balanced.lessons.items():
        unit = one[f"held_out_loss_{game}"] / other[f"held_out_loss_{game}"]
        assert unit == pytest.approx(blind_loss("kl", lesson.train_q_NA, 0.05))
        assert one[f"kl_{game}"] == other[f"kl_{game}"]


@pytest.mark.parametrize(("windows", "interleave"), [(False, "episode"), (True, "episode"), (True, "together")])
def test_resume_gives_the_same_weights(
    pair: list[Dataset], windows: bool, interleave: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, validate_every=30)
    if windows:
        monkeypatch.setattr(loader, "BLOCK", 32)
        little = (sum(len(d) * (4 * d.actions + 16) for d in pair) + (2 * 2 + 1) * 35 * 84 * 84 + 16 * 4 * 84 * 84) / 1e9
        config = dataclasses.replace(config, memory_gb=little, validation_states=16, batch=16)
    undisturbed = student(pair, updates=100, config=config, interleave=interleave)
    assert all(lesson.loader.resident != windows for lesson in undisturbed.lessons.values())
    list(train(undisturbed))
    first = student(pair, updates=100, config=config, interleave=interleave)
    for p in train(first):
        if p.done == 50:  # between two validations
            break
    second = student(pair, updates=100, config=config, interleave=interleave)
    second.load_state_dict(first.state_dict())
    list(train(second))
    assert second.curve == undisturbed.curve
    for name, value in undisturbed.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name])


@given(
    lengths=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=5), min_size=1, max_size=4),
    interleave=st.one_of(st.just("episode"), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_turns_give_each_game_its_minibatches_in_order(lengths: list[list[int]], interleave: Any, seed: int) -> None:
    steps = {f"g{i}": np.array(of_game) for i, of_game in enumerate(lengths)}
    turns = Turns(steps, interleave, 16, seed)
    places = [turns.place(update) for update in range(150)]
    had: Counter[str] = Counter()
    for game, number in places:
        assert number == had[game]
        had[game] += 1
    assert turns.counts(150) == {game: had[game] for game in steps}
    assert Turns(steps, interleave, 16, seed).place(149) == places[149]  # without those before
    if isinstance(interleave, int):
        assert [game for game, _ in places] == [f"g{u // interleave % len(steps)}" for u in range(150)]


def test_a_turn_is_an_episode() -> None:
    turns = Turns({"short": np.array([32, 64]), "long": np.array([1600])}, "episode", 16, 0)
    games = [turns.place(update)[0] for update in range(2 + 100 + 4 + 100)]
    runs = [(game, len(list(run))) for game, run in itertools.groupby(games)]
    assert [game for game, _ in runs] == ["short", "long", "short", "long"]
    assert sorted(length for _, length in runs) == [2, 4, 100, 100]


def test_together_every_update_is_of_all_games(pair: list[Dataset]) -> None:
    learning = student(pair, interleave="together", updates=20)
    batches = learning.batches(7)
    assert [(batch.game, len(batch.q_BA)) for batch in batches] == [
        ("Corridor", CONFIG.batch // 2),
        ("Mirror", CONFIG.batch // 2),
    ]
    for batch, dataset in zip(batches, pair, strict=True):
        half = student([dataset], config=dataclasses.replace(CONFIG, batch=CONFIG.batch // 2)).batches(7)[0]
        assert torch.equal(batch.obs_BCHW, half.obs_BCHW)
    alone = [learning._loss_B(learning.network(b.obs_BCHW, b.game), b).mean().detach() for b in batches]
    assert float(learning.update(batches)) == pytest.approx(float(torch.stack(alone).mean()))
    *_, last = train(learning)
    assert last.metrics["states_Corridor"] == last.metrics["states_Mirror"] == 20 * CONFIG.batch // 2
    (alike,) = student(pair[:1], interleave="together").batches(7)
    assert torch.equal(alike.obs_BCHW, student(pair[:1]).batches(7)[0].obs_BCHW)
    with pytest.raises(ValueError, match="a batch of 1 has no state for each of 2 games: raise batch"):
        student(pair, interleave="together", config=dataclasses.replace(CONFIG, batch=1))


def test_a_game_is_added_without_touching_the_others(pair: list[Dataset]) -> None:
    old = student(pair[:1], updates=100)
    list(train(old))
    decaying = dataclasses.replace(CONFIG, weight_decay=1.0)
    for frozen, config in ((True, decaying), (False, decaying), (False, CONFIG)):
        new = student(pair[1:], updates=200, start=old.network, frozen=frozen, config=config)
        assert list(new.network.actions) == ["Corridor", "Mirror"]
        *_, last = train(new)
        assert last.metrics["agreement"] == 1.0
        before, after = old.network.state_dict(), new.network.state_dict()
        same = {name: torch.equal(before[name], after[name]) for name in before}
        assert all(same[name] for name in before if name.startswith("heads."))
        assert all(same.values()) == frozen


def test_the_head_of_a_game_whose_turn_it_is_not_does_not_decay(pair: list[Dataset]) -> None:
    learning = student(pair, interleave=1, config=dataclasses.replace(CONFIG, weight_decay=1.0))
    before = {name: weights.clone() for name, weights in learning.network.state_dict().items()}
    (batch,) = learning.batches(0)
    learning.update([batch])
    for name, weights in learning.network.state_dict().items():
        other = name.startswith("heads.") and batch.game not in name
        assert torch.equal(weights, before[name]) == other, name


@pytest.mark.parametrize("shrink", [0.0, 0.25, 1.0])
def test_a_shrunk_start_is_part_fresh(pair: list[Dataset], shrink: float) -> None:
    old = student(pair, updates=100)
    list(train(old))
    fresh, both = (student(pair[1:], start=start, shrink=shrink).network for start in (None, old.network))
    for name, weights in both.named_parameters():
        before = old.network.get_parameter(name)
        learned = not name.startswith("heads.Corridor")
        expected = shrink * before + (1 - shrink) * fresh.get_parameter(name) if learned else before
        assert torch.allclose(weights, expected, atol=1e-7)


def test_what_does_not_go_together(pair: list[Dataset]) -> None:
    start = new_network(SPEC, {"Corridor": 3}, CPU.device, 0)
    with pytest.raises(ValueError, match="plays Corridor with 3 actions, its dataset has 2"):
        student(pair, start=start)
    with pytest.raises(ValueError, match="has another architecture"):
        student(pair, start=new_network(dataclasses.replace(SPEC, hidden=8), {"Corridor": 2}, CPU.device, 0))
    for start_network in (new_network(SPEC, {"Corridor": 2, "Mirror": 3}, CPU.device, 0), None):
        with pytest.raises(ValueError, match="a frozen student has nothing to learn"):
            student(pair, start=start_network, frozen=True)
    with pytest.raises(ValueError, match="a frozen student learns nothing of Corridor, which it plays: leave these out"):
        student(pair, start=new_network(SPEC, {"Corridor": 2}, CPU.device, 0), frozen=True)
    with pytest.raises(ValueError, match="feature regression is for one game, not for Corridor, Mirror"):
        student(pair, objective=Objective(loss="kl", temperature=0.05, feature_weight=0.1))
    with pytest.raises(ValueError, match="temperatures name mirror: the mix has Corridor, Mirror"):
        student(pair, objective=Objective(loss="kl", temperature=0.05, temperatures={"mirror": 0.5}))
    with pytest.raises(ValueError, match=r"a share of 0.001 GB of memory.*raise memory_gb to 0\.\d"):
        student(pair, config=dataclasses.replace(CONFIG, memory_gb=0.001))
    with pytest.raises(ValueError, match="temperature -1 is not positive"):
        Objective(loss="kl", temperature=0.05, temperatures={"Mirror": -1.0})


def test_cosines() -> None:
    network = QNetwork(SPEC, {"a": 2})

    def norm() -> torch.Tensor:
        return torch.stack([weights.square().sum() for weights in network.trunk.parameters()]).sum()

    found = trunk_cosines(network, {"a": norm(), "b": 2 * norm(), "c": -norm()})
    assert found["cosine_a_b"] == pytest.approx(1.0, abs=1e-5)
    assert found["cosine_a_c"] == found["cosine_b_c"] == pytest.approx(-1.0, abs=1e-5)

"""Agents survive the disk; a damaged or foreign folder is one clear line."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.agents.checkpoints import CARD, WEIGHTS, load_agent, save_agent
from pipeline.agents.networks import NETWORKS, QNetwork

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_agent(tmp_path / "agent", QNetwork(NETWORKS["net3"], {"Pong": 6}), {"role": "student"})
    return tmp_path / "agent"


def test_round_trip(folder: Path) -> None:
    agent = load_agent(folder, CPU)
    assert agent.card["parameters"] == 61_174
    assert agent.card["network"] == "net3"
    saved = save_agent(folder.with_name("copy"), agent.network, {"role": "student"})
    assert saved["digest"] == agent.digest


def test_a_missing_card_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no agent at .*pd-pipeline plan"):
        load_agent(tmp_path, CPU)


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        load_agent(folder, CPU)


def test_a_flipped_byte_is_noticed(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(ValueError, match="does not match the digest"):
        load_agent(folder, CPU)


def test_truncated_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        load_agent(folder, CPU)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"format": 1}'])
def test_a_broken_card(folder: Path, text: str) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(ValueError, match=CARD):
        load_agent(folder, CPU)


def test_another_architecture_in_the_card(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    card["architecture"]["hidden"] = 65
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="is damaged"):
        load_agent(folder, CPU)


def test_a_card_that_claims_more_than_its_weights_fills_no_memory(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    card["architecture"]["hidden"] = 10**12
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"is damaged \([\d,]+ parameters are more than model.safetensors has"):
        load_agent(folder, CPU)


def test_a_future_format(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(ValueError, match="update pd-pipeline"):
        load_agent(folder, CPU)

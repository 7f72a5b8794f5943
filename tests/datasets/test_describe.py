"""What a dataset says about itself: exact numbers however it is walked, JSON whatever it holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.datasets import describe
from pipeline.datasets.reader import Dataset, open_dataset
from pipeline.datasets.schema import Flag
from tests.datasets.test_format import noise
from tests.fakes import corridor_dataset, write_dataset


def test_stats_walk_in_windows_and_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corridor_dataset(tmp_path / "set", 12)
    dataset = open_dataset(tmp_path / "set")
    whole = describe.stats(dataset)
    records = dataset.records(0, len(dataset))
    assert whole["action_share"]["1"] == round(float((records.action_N == 1).mean()), 4)
    assert whole["random_share"] == round(float(((records.flags_N & Flag.RANDOM_ACTION) != 0).mean()), 4)
    assert whole["q_best"]["median"] == round(float(np.median(records.q_NA.max(axis=1))), 4)
    monkeypatch.setattr(describe, "WINDOW", 7)
    read: list[int] = []
    array = Dataset.read

    def counted(self: Dataset, name: str, start: int, stop: int) -> Any:
        read.append(stop - start)
        return array(self, name, start, stop)

    monkeypatch.setattr(Dataset, "read", counted)
    assert describe.stats(dataset) == whole
    assert max(read) == 7


def test_what_is_no_finite_number_is_none(tmp_path: Path) -> None:
    odd = noise(6, 0)
    odd.q_NA[2], odd.reward_N[1] = np.inf, np.nan
    write_dataset(tmp_path / "set", [odd])
    facts = describe.stats(open_dataset(tmp_path / "set"))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["q_best"]["max"] is None
    assert facts["return"]["mean"] is None

"""Named streams are independent; exploration's numbers are uniform and pure."""

import itertools

import numpy as np
import pytest

from pipeline.seeding import EPISODE_SEEDS, SEEDS_PER_ROOT, episode_seeds, integer, stream, uniform


def test_streams_depend_on_their_own_name_only() -> None:
    alone = stream(7, "batches", 3).random(4)
    stream(7, "something", "new").random(100)
    assert np.array_equal(stream(7, "batches", 3).random(4), alone)
    assert not np.array_equal(stream(7, "batches", 4).random(4), alone)
    assert not np.array_equal(stream(8, "batches", 3).random(4), alone)
    assert integer(7, "1") != integer(7, 1)


def test_adding_a_stream_never_shifts_the_others() -> None:
    assert stream(0, "batches", 0).integers(0, 1000, 5).tolist() == [260, 963, 498, 506, 646]


def test_uniform_is_uniform_and_independent_of_its_company() -> None:
    key_B, step_B = np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300)
    drawn = uniform(key_B, step_B, 0)
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    expected = len(drawn) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square, 19 degrees of freedom: p < 0.001
    assert abs(np.corrcoef(drawn, uniform(key_B, step_B, 1))[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    assert uniform(key_B[500:501], step_B[500:501], 0)[0] == drawn[500]


def test_purposes_never_share_an_episode() -> None:
    ranges = [range(episode_seeds(p, r), episode_seeds(p, r) + SEEDS_PER_ROOT) for p in EPISODE_SEEDS for r in (0, 1, 99)]
    firsts = sorted((r.start, r.stop) for r in ranges)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(firsts))
    assert max(r.stop for r in ranges) < 2**31
    with pytest.raises(ValueError, match="choose 0 to 99"):
        episode_seeds("collect", 100)

"""What networks cost, by hand."""

from pipeline.agents.cost import cost
from pipeline.agents.networks import NETWORKS


def test_the_published_network_by_hand() -> None:
    multiply_adds = 20 * 20 * 32 * 8 * 8 * 4 + 9 * 9 * 64 * 4 * 4 * 32 + 7 * 7 * 64 * 3 * 3 * 64 + 3136 * 512 + 512 * 18
    found = cost(NETWORKS["dqn"], 18)
    assert found.flops == 2 * multiply_adds
    assert (found.parameters, found.bytes) == (1_693_362, 4 * 1_693_362)


def test_the_ladder_gets_cheaper() -> None:
    flops = [cost(NETWORKS[name], 18).flops for name in ("dqn", "net1", "net2", "net3", "tiny")]
    assert flops == sorted(flops, reverse=True)

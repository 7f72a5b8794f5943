"""Parameters, multiply-adds, bytes and latency on one core of every network: one state at a time in float32, as an agent acts.

Latencies are interleaved in one run; the last column is the share of the teacher-size network's.

    python -m benchmarks.networks
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import command
from benchmarks.timing import rates
from pipeline.agents.cost import cost
from pipeline.agents.networks import NETWORKS, new_network

ACTIONS = 18
NAMES = ("dqn", "net1", "net2", "net3", "tiny")
STATES = 200


def main() -> None:
    torch.set_num_threads(1)
    obs = torch.randint(0, 256, (1, 4, 84, 84), dtype=torch.uint8)

    def alone(name: str) -> Callable[[], int]:
        network = new_network(NETWORKS[name], {"game": ACTIONS}, torch.device("cpu"), 0).eval()

        def run() -> int:
            with torch.inference_mode():
                for _ in range(STATES):
                    network(obs)
            return STATES

        return run

    found = rates({name: alone(name) for name in NAMES}, rounds=9)
    print("| network | parameters | MFLOP a state | kB | ms a state | share of dqn's time |\n|---|---|---|---|---|---|")
    for name, rate in found.items():
        c = cost(NETWORKS[name], ACTIONS)
        share = found["dqn"] / rate
        print(f"| {name} | {c.parameters:,} | {c.flops / 1e6:.2f} | {c.bytes / 1e3:,.0f} | {1e3 / rate:.3f} | {share:.0%} |")


if __name__ == "__main__":
    command.run(main, __doc__)

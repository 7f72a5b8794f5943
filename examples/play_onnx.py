"""Play one episode with an agent that `pd-pipeline export AGENT --to onnx` wrote. Nothing of pd-pipeline is needed:

pip install onnxruntime numpy 'ale-py[vector]' && python play_onnx.py AGENT.onnx [SEED]
"""

import json
import sys

import numpy as np
import onnxruntime
from ale_py import AtariVectorEnv

EPSILON = 0.05  # of the actions are random, as where the agent was scored

if len(sys.argv) < 2:
    sys.exit("usage: python play_onnx.py AGENT.onnx [SEED]")
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
record = json.loads(session.get_modelmeta().custom_metadata_map["pd_pipeline"])
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
rng = np.random.default_rng(seed)

env = AtariVectorEnv(**record["vector_env"], num_envs=1, batch_size=0, num_threads=1)
obs, _ = env.reset(seed=np.array([seed]))
total, over = 0.0, False
while not over:
    q = session.run(["q"], {"obs": obs})[0]
    action = rng.integers(q.shape[1]) if rng.random() < EPSILON else q[0].argmax()
    obs, reward, terminated, truncated, _ = env.step(np.array([action]))
    total += float(reward[0])
    over = terminated[0] or truncated[0]
print(f"{record['game']}: return {total:g}")  # noqa: T201

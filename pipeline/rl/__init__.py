"""Learning from reward: how teachers and multi-task baselines come to be."""

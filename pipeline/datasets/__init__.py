"""The memory: Zarr datasets of states and Q-values. No torch, no gymnasium."""

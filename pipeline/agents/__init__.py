"""The minds: networks, the policies they play, and their checkpoints. Torch only."""

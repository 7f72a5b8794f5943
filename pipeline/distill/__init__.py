"""Learning from a teacher's stored Q-values."""

"""Reproducible ratios: each command measures both sides in one run, since absolute speeds of shared machines mean little."""

"""Policy distillation as a library: it knows no params.yaml, no data/ paths and no argv."""

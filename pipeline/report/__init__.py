"""Episodes -> claims. No gymnasium, no zarr, no torch."""

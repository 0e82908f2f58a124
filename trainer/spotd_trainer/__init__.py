"""The trainer side of spotd: bit-exact resume in a few lines."""

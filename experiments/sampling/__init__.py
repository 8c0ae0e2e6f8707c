"""Whatever runs a diffusers pipeline."""

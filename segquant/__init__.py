"""Post-training quantization of diffusion denoisers, guided by their static graph."""

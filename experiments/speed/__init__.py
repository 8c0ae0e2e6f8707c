"""How fast quantized layers are: `segbench bench-kernels` and `segbench bench-model`."""

"""A quantized denoiser elsewhere: in diffusers and in other runtimes."""

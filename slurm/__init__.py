"""Launching jobs through submitit; knows nothing of quantization."""

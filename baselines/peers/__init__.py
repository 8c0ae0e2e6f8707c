"""Quantization libraries as rows: one file each, imported only when chosen."""

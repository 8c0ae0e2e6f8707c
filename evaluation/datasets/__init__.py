"""Prompts and true images: one file a data set."""

"""Presents and decides no number: tables, columns, figures, comparison, W&B."""

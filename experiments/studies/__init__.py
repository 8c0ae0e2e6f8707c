"""Questions asked once: python -m experiments.studies.NAME."""

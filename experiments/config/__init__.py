"""From a command line to checked dataclasses."""

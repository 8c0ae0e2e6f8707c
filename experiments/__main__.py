"""`python -m experiments` is the `segbench` command."""

import sys

from experiments.cli import main

sys.exit(main())

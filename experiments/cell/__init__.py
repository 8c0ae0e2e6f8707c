"""One file a stage; a cell, a sweep, the run."""

"""One file a verb; the command line only dispatches."""

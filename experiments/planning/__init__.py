"""What each stage of a run takes of memory and disk, known before it runs."""

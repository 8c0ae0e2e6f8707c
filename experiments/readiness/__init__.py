"""Before anything is queued: what is there, what is missing, and how it is brought."""

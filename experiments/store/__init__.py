"""Where results lie: content-addressed folders, locks, digests of sources, paths."""

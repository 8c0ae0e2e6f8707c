"""The same sweep as jobs: what becomes a job, and where it stands."""

"""Who runs a cohort, and where."""

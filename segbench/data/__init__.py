"""Data sets: one file each, behind `segbench.data.base.Dataset`."""

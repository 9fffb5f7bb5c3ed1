"""Where cohorts run: base.py holds the contract and the loop, each other file a launcher."""

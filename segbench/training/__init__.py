"""A cohort: built, trained in lockstep, measured and written; prediction and evaluation."""

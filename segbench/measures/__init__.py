"""The columns of the table: one measure, one file. `segbench.measures.base` holds the contract."""

"""From a config to its runs: the plan, what it takes, running it, and where it stands."""

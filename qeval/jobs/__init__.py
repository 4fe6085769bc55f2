"""Running the plan: jobs in fresh processes, one after the other."""

"""Tasks whose answers are programs: ask the model, run the programs in the sandbox, count."""

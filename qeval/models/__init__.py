"""A float model on this machine: found, read, loaded; its tokenizer, linears and blocks."""

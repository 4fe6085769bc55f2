"""A float model as it lies here: found, read, loaded; its tokenizer, its linears and blocks."""

"""llama.cpp: its library, its converter, its files."""

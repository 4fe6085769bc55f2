"""How far a row's predictions moved from those of the float model, token by token."""

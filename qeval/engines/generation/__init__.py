"""How the torch engine generates text."""

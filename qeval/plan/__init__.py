"""From a spec to its cells: their keys, and what will happen to each."""

"""From a table to a decision: which row to run (`qeval recommend`), and whether bounds hold
(`qeval gate`). Numbers, differences and intervals are those of the table (report/)."""

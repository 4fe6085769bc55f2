"""`qeval compare`: two rows, two folders, or what two versions of qeval measured."""

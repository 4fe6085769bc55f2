"""What every other folder shares; it imports none of them."""

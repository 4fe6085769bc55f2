"""What a spec will show and cost, before it is run."""

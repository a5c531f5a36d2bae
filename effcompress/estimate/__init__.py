"""What a recipe costs and whether its target is reachable, before a run and without torch."""

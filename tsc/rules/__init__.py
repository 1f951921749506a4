"""Controllers that decide by what a junction observes: fast enough to run every junction during a replay (the tail)."""

"""Controllers that decide by a rule. They are fast enough to run every junction during a replay (as the tail)."""

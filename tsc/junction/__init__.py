"""One junction: its timing, its clocks, what it observes, the prompt made of that, and the decision that answers it."""

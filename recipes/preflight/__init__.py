"""What is checked before a run: knobs, configuration, memory."""

"""Samples, and the replay of their saved states."""

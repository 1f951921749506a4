"""A policy as a signal program that SUMO runs by itself: counts of detectors, weighed by a linear rule."""

"""Whole episodes in closed loop, and their traces."""

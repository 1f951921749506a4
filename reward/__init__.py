"""The reward: what an answer saves in SUMO. verl loads `pkg://reward.compute_score`, function `compute_score`.

This package re-exports nothing: a name `compute_score` here would hide the module of that name from verl's loader.
"""

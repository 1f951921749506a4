"""The domain: signal programs, observations, prompts, decisions, SUMO, replay, controllers, episodes."""

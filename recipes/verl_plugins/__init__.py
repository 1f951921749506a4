"""What verl loads by name: agent loop, replay buffer, value model, and its platform for CPUs."""

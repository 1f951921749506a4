"""What verl is told: one Hydra file per algorithm, and the Python around them."""

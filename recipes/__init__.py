"""What verl is told: one Hydra file per algorithm, and the plug-ins they name."""

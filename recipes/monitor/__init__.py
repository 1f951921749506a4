"""Shows trainings in a browser, while they run and afterwards (scripts/monitor.sh)."""

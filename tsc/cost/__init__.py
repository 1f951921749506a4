"""What a decision costs: measures of traffic, their sum over the horizon, and the outcome of both answers."""

"""What the evaluation can put in charge of the junctions, by name."""

"""Controllers: what decides at the decision points of the junctions, within the same minimum and maximum green."""

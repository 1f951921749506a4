"""The controllers that an evaluation can put in charge of the junctions."""

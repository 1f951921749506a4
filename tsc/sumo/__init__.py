"""The running simulation: the only room that imports libsumo and traci, and that starts programs of eclipse-sumo."""

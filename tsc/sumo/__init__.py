"""The running simulation. Only this package imports libsumo and traci, and starts programs of eclipse-sumo."""

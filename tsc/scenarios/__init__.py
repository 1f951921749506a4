"""Which net, which demand, which signals: scenario files, families of junctions, and any sumocfg."""

"""`mirror convert`: converts the configurations of other tools to configurations of `mirror`."""

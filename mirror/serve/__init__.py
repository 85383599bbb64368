"""`mirror serve`: a registry server over a layout or bundle."""

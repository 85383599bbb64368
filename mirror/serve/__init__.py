"""`mirror serve`: a registry server for a layout or bundle."""

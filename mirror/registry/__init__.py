"""Access to registries as sources and targets of copies, and all code that uses HTTP."""

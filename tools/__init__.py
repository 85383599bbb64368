"""Programs that build and set up the project. They are not part of the package `mirror`."""

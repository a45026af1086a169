"""A small project that is started repeatedly, with and without the library."""

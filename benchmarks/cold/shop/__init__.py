"""A small project that is started over and over: with the library, and without."""

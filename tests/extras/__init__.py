"""A project for each extra, which the session `extras` of nox runs with the wheel and this extra alone."""

"""Database access: errors, commits, statements, clocks, transaction guards, and tables of published versions."""

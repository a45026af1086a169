"""Optional plugins, which a project turns on by adding them to LAMBDA_TASKS_PLUGINS."""

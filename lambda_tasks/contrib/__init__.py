"""Plugins for what not every project has; name those you want in LAMBDA_TASKS_PLUGINS."""

from django.apps import AppConfig


class TestAppConfig(AppConfig):
    """The app of the tests: a model to see effects in, and a module for tasks."""

    name = "tests.app"
    label = "app"

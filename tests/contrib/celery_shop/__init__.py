"""A shop with tasks for Celery. The tests import it after they have replaced its import lines."""

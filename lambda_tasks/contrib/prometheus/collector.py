"""Gauges of what the database knows, which are read when Prometheus scrapes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from django.db import connections
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lambda_tasks.management.prometheus import METRICS, Sample, outbox_samples, running_samples
from lambda_tasks.operations import statistics
from lambda_tasks.recording.lines import get_logger

logger: Final = get_logger("lambda_tasks.contrib.prometheus")

SUCCESS: Final = "lambda_tasks_database_scrape_success"
GAUGES: Final = {
    **{
        name: METRICS[name]
        for name in (
            "lambda_tasks_running",
            "lambda_tasks_running_oldest_seconds",
            "lambda_tasks_outbox_messages",
            "lambda_tasks_outbox_oldest_seconds",
            "lambda_tasks_outbox_overdue_seconds",
        )
    },
    SUCCESS: "Whether the database has answered: 1, or 0 if the other gauges are missing.",
}


class DatabaseCollector(Collector):
    """Reads records that are RUNNING and the outbox: three queries, and one for each outbox.

    An error of the database is logged as a warning. Then only `lambda_tasks_database_scrape_success` has a value: 0.
    """

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges without values, so that registering the collector does not query the database."""
        return [GaugeMetricFamily(name, text) for name, text in GAUGES.items()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        samples: list[Sample] = []
        try:
            with _closing_new_connections():
                now = statistics.moment()
                samples += running_samples(now.now, statistics.running(now))
                samples += outbox_samples(now.now, statistics.outboxes(now))
            samples.append(Sample(SUCCESS, 1, {}))
        except Exception as error:
            logger.warning("The database could not be scraped: %s: %s", type(error).__name__, error)
            samples = [Sample(SUCCESS, 0, {})]
        for name, text in GAUGES.items():
            if own := [sample for sample in samples if sample.metric == name]:
                family = GaugeMetricFamily(name, text, labels=list(own[0].labels))
                for sample in own:
                    family.add_metric(list(sample.labels.values()), sample.value)
                yield family


@contextmanager
def _closing_new_connections() -> Iterator[None]:
    """Close the connections that the block opens: an exporter answers each scrape in a thread of its own."""
    open_before = {each.alias for each in connections.all(initialized_only=True) if each.connection is not None}
    try:
        yield
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.alias not in open_before:
                connection.close()

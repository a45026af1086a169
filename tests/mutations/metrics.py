"""Mutations of the plugins that write metrics for CloudWatch and for Prometheus."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

EMF: Final = "tests/contrib/test_emf.py"
MEASURING: Final = "tests/contrib/test_measuring.py"
PROMETHEUS: Final = "tests/contrib/test_prometheus.py"

MUTATIONS: Final = (
    Mutation(
        "a task that was cancelled has failed",
        "contrib/measuring.py",
        "            return CANCELLED if isinstance(error, TaskCancelled) else FAILED",
        "            return FAILED",
        MEASURING,
    ),
    Mutation(
        "a run without a call has a duration",
        "contrib/measuring.py",
        "if name == SKIPPED or (isinstance(outcome, Failed) and isinstance(outcome.error, _NOT_MEASURED)):",
        "if name == SKIPPED:",
        MEASURING,
    ),
    Mutation(
        "a retry waits since the first call",
        "contrib/measuring.py",
        "None if run.n_retries else run.age",
        "run.age",
        MEASURING,
    ),
    Mutation(
        "the waiting time contains the run",
        "contrib/measuring.py",
        "max(age - duration, 0.0)",
        "max(age, 0.0)",
        MEASURING,
    ),
    Mutation(
        "a web process keeps metrics that it never writes",
        "contrib/emf.py",
        'self._measures = function != ""',
        "self._measures = True",
        EMF,
    ),
    Mutation(
        "metrics are written again with the next batch",
        "contrib/emf.py",
        "tallies, self._tallies = self._tallies, defaultdict(_Tally)",
        "tallies = self._tallies",
        EMF,
    ),
    Mutation(
        "a line has any number of values",
        "contrib/emf.py",
        'if len(tally.seconds["Duration"]) == MOST_RUNS:',
        'if len(tally.seconds["Duration"]) < 0:',
        EMF,
    ),
    Mutation(
        "all metrics have the dimensions of a task",
        "contrib/emf.py",
        "        if self._per_task:\n            dimensions",
        "        if True:\n            dimensions",
        EMF,
    ),
    Mutation(
        "a scrape without a database is an error",
        "contrib/prometheus/collector.py",
        "        except Exception as error:\n",
        "        except ZeroDivisionError as error:\n",
        PROMETHEUS,
    ),
    Mutation(
        "an exporter leaves a connection open for each scrape",
        "contrib/prometheus/collector.py",
        "                connection.close()\n",
        "                pass\n",
        PROMETHEUS,
    ),
    Mutation(
        "a scrape closes the connection of the caller",
        "contrib/prometheus/collector.py",
        "            if connection.alias not in open_before:\n",
        "            if True:\n",
        PROMETHEUS,
    ),
    Mutation(
        "any token may read the metrics",
        "contrib/prometheus/views.py",
        'constant_time_compare(request.headers.get("Authorization", ""), f"Bearer {self.token}")',
        '"Authorization" in request.headers',
        PROMETHEUS,
    ),
    Mutation(
        "an empty token opens the metrics",
        "contrib/prometheus/views.py",
        "        if not self.token:\n            raise",
        "        if not self.token:\n            return True\n            raise",
        PROMETHEUS,
    ),
    Mutation(
        "the view shows one of several processes",
        "contrib/prometheus/__init__.py",
        'if "PROMETHEUS_MULTIPROC_DIR" in os.environ:',
        'if "PROMETHEUS_MULTIPROC_DIR" in ():',
        PROMETHEUS,
    ),
)

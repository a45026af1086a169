"""A view that Prometheus scrapes.

    from lambda_tasks.contrib.prometheus.views import MetricsView, metrics_view

    path("metrics/", metrics_view)
    path("metrics/", MetricsView.as_view(token=os.environ["METRICS_TOKEN"]))

It needs the extra `prometheus`, and works without the plugin: then it has the metrics of other libraries, and the
gauges from the database.
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from prometheus_client.exposition import choose_encoder

from lambda_tasks.contrib.prometheus import registry


@method_decorator([never_cache, transaction.non_atomic_requests], name="dispatch")
class MetricsView(View):
    """Answers with the metrics of this process, or of all processes in multiprocess mode, and of the database.

    The options are the attributes below, as arguments of `as_view()`.
    """

    #: The token that requests must have as `Authorization: Bearer`; None if another layer protects the view.
    token: str | None = None
    #: Whether to read the gauges from the database.
    database: bool = True

    def get(self, request: HttpRequest) -> HttpResponse:
        if not self._allows(request):
            return HttpResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return HttpResponse(encode(registry(database=self.database)), content_type=content_type)

    def _allows(self, request: HttpRequest) -> bool:
        if self.token is None:
            return True
        if not self.token:
            raise ImproperlyConfigured("token must be a non-empty string, or None if another layer protects the view.")
        return constant_time_compare(request.headers.get("Authorization", ""), f"Bearer {self.token}")


metrics_view = MetricsView.as_view()

"""What a monitoring system asks the launcher: GET /metrics, /v2/health/live and /v2/health/ready, and nothing else.

/metrics has Triton's own and those of the models around the networks, as Triton gives them but for models on trial,
and behind them the launcher's: restarts, reloads, which versions serve, and what was built. They are in Prometheus's
text format. The endpoint stays while the server behind it is started again.
"""

from __future__ import annotations

import http.client
import http.server
import importlib.metadata
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from slime_serve.publications import Published

_SECONDS = 5.0
_TEXT = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus's format
# Of a publication's trial: server_control.TRIAL.
_ON_TRIAL = re.compile(r'^\w+\{[^}]*model="[^"]*\.next".*\n', re.MULTILINE)


class Endpoint:
    """Answers at ``address`` (host, port) from a thread of its own, until `close`. ``triton``: its metrics' HOST:PORT.

    Attributes: ``is_ready``, to be set while segmenters answer; ``restarts`` and ``reloads``, to be counted up.
    """

    def __init__(self, address: tuple[str, int], triton: str) -> None:
        self._triton = f"http://{triton}/metrics"
        # Never through a proxy of the environment.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.is_ready = False
        self._live: Mapping[str, Published] = {}
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self.restarts = Counter("slime_server_restarts", "Times that the server was started again", registry=registry)
        self.reloads = Counter(
            "slime_model_reloads", "Times that a model was loaded again, its process dead", ["model"], registry=registry
        )
        self._build = Gauge("slime_build_info", "1; what serves", ["version", "triton"], registry=registry)
        ready = Gauge("slime_ready", "1 while segmenters answer, 0 while the server starts", registry=registry)
        ready.set_function(lambda: float(self.is_ready))
        registry.register(_Live(lambda: self._live))
        self._registry = registry
        self._server = http.server.ThreadingHTTPServer(address, _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def built(self, triton: str) -> None:
        """Tell of this version of Triton from now on."""
        self._build.clear()
        self._build.labels(importlib.metadata.version("slime-serve"), triton).set(1)

    def take(self, live: Mapping[str, Published]) -> None:
        """Tell of these from now on as what serves, by the segmenters' names."""
        self._live = live

    def metrics(self) -> bytes:
        """Return all metrics; while the server does not answer, the launcher's alone."""
        try:
            with self._opener.open(self._triton, timeout=_SECONDS) as answer:
                said = _ON_TRIAL.sub("", answer.read().decode())
        except (OSError, http.client.HTTPException):
            said = ""
        return said.encode() + generate_latest(self._registry)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


class _Live(Collector):
    """The version of each segmenter that serves now."""

    def __init__(self, live: Callable[[], Mapping[str, Published]]) -> None:
        self._live = live

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = GaugeMetricFamily("slime_live_version", "Version that serves", labels=["segmenter", "form"])
        for name, published in self._live().items():
            found.add_metric([name, published.form], published.version)
        yield found


def _handler(endpoint: Endpoint) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10  # seconds of a connection that says nothing

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, endpoint.metrics(), _TEXT)
            elif path == "/v2/health/live":
                self._answer(200)
            elif path == "/v2/health/ready":
                self._answer(200 if endpoint.is_ready else 503)
            else:
                self._answer(404)

        def _answer(self, status: int, content: bytes = b"", kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing: a request every few seconds is no event."""

    return Handler

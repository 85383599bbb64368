"""Formats the metrics of the last run for Prometheus, for a textfile collector or an HTTP endpoint.

Importing `prometheus_client` takes time, so this module is imported only when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mirror.errors import printable
from mirror.output.report.document import ReportDocument
from mirror.output.report.history import History
from mirror.util.files import atomic_write

MAX_PATH = 4096  # characters of the label `config`
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Samples = Iterable[tuple[Sequence[str], float]]


def render_metrics(report: ReportDocument, history: History, *, config: Path, shard: str = "") -> bytes:
    """Return the metrics of a finished run in the text format of Prometheus, version 0.0.4.

    history: the history that includes this run. config: the configuration file. shard: the shard of the run, such as
    `shard-0-of-4`, or an empty string. Every metric has these two as labels, so that the files of several
    configurations on one machine do not contain the same sample."""
    registry = CollectorRegistry()
    registry.register(_RunCollector(report, history, (printable(config.absolute(), MAX_PATH), shard)))
    return generate_latest(registry)


def write_textfile(path: Path, metrics: bytes) -> None:
    """Replace the metrics file at `path`. All users may read it, because collectors run as a different user.

    Raises LocalError."""
    with atomic_write(path, mode=0o644) as out:
        out.write(metrics)


class _RunCollector(Collector):
    """Collects the metrics of one finished run. run_labels: the values of the labels `config` and `shard`."""

    def __init__(self, report: ReportDocument, history: History, run_labels: tuple[str, str]) -> None:
        self._report = report
        self._history = history
        self._run_labels = run_labels

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield all metrics. Those without a value are left out."""
        report, history, totals = self._report, self._history, self._report.totals
        yield self._single("last_run_timestamp_seconds", "End of the last run.", report.ended.timestamp())
        yield self._single("last_run_duration_seconds", "Duration of the last run.", report.seconds)
        yield self._single("last_run_exit_code", "Exit code of the last run.", report.exit)
        if history.last_success is not None:
            text = "End of the last run with exit code 0 after which no image was failing."
            yield self._single("last_success_timestamp_seconds", text, history.last_success.timestamp())
        if history.oldest_failure is not None:
            text = "Start of the run in which the longest-failing image first failed."
            yield self._single("oldest_failure_timestamp_seconds", text, history.oldest_failure.timestamp())
        yield self._single("last_run_retries", "Retries in the last run.", totals.retries)
        yield self._single("last_run_wait_seconds", "Sum of the waits before retries.", totals.waited_seconds)
        text = "Images of the last run, by the source of their mirror and by result."
        yield self._family(
            "last_run_images", text, ("mirror", "result"), _double_labels(dict(sorted(totals.mirrors.items())))
        )
        text = "Blobs of the last run by outcome."
        yield self._family("last_run_blobs", text, ("outcome",), _single_labels(totals.blobs))
        text = "Bytes of blobs that the last run read, sent, or did not have to send because it mounted the blobs."
        yield self._family("last_run_bytes", text, ("direction",), _single_labels(totals.bytes))
        text = "Requests that the last run sent, by host, method and kind of object."
        yield self._family("last_run_requests", text, ("host", "method", "kind"), _request_samples(totals.requests))
        statuses = {host: use.statuses for host, use in report.hosts.items()}
        text = "Responses that the last run received, by host and HTTP status."
        yield self._family("last_run_responses", text, ("host", "status"), _double_labels(statuses))
        paused = {host: sum(pause.seconds for pause in use.pauses) for host, use in report.hosts.items() if use.pauses}
        text = "Seconds for which the last run paused requests to a host because the host asked for a pause."
        yield self._family("last_run_pause_seconds", text, ("host",), _single_labels(paused))
        quotas = {host: use.quota for host, use in report.hosts.items() if use.quota is not None}
        remaining = {host: quota.remaining for host, quota in quotas.items()}
        limits = {host: quota.limit for host, quota in quotas.items() if quota.limit is not None}
        text = "Remaining pulls in the quota of a host, as stated in its last response."
        yield self._family("quota_remaining_pulls", text, ("host",), _single_labels(remaining))
        yield self._family("quota_limit_pulls", "Quota of a host for pulls.", ("host",), _single_labels(limits))

    def _single(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        """Return a metric with one sample, which has only the labels of the run."""
        return self._family(name, text, (), (((), value),))

    def _family(self, name: str, text: str, labels: Sequence[str], samples: Samples) -> GaugeMetricFamily:
        """Return a metric with the given samples. labels: the names of the labels, in addition to those of the run."""
        family = GaugeMetricFamily(f"mirror_{name}", text, labels=("config", "shard", *labels))
        for values, number in samples:
            family.add_metric([*self._run_labels, *values], number)
        return family


def _single_labels(counts: Mapping[str, float]) -> Samples:
    """Convert counts to the samples of a metric with one label."""
    return (((name,), count) for name, count in counts.items())


def _double_labels(counts: Mapping[str, Mapping[str, int]]) -> Samples:
    """Convert nested counts to the samples of a metric with two labels."""
    return (((first, second), count) for first, inner in counts.items() for second, count in inner.items())


def _request_samples(counts: Mapping[str, Mapping[str, int]]) -> Samples:
    """Return the samples for requests, whose kinds consist of a method and an object, such as `HEAD manifest`."""
    for host, kinds in counts.items():
        for kind, count in kinds.items():
            method, _, what = kind.partition(" ")
            yield (host, method, what), count

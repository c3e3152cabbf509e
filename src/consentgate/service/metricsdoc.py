"""The metrics as a page of documentation, made from the code: `make metrics-doc`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric

from consentgate.service.metrics import Metrics, WorkerGauges

_HEAD = """\
# Metrics

<!-- Made from the code by `make metrics-doc`; do not edit. -->

`consentgate run` serves these at `/metrics`, on the address that the `http` section of the
configuration names. Counters count what was committed by this process since it began. The series of
an input partition vanish when the partition goes to another worker. No label holds personal data.

| metric | type | labels | buckets | meaning |
|---|---|---|---|---|
"""
_TAIL = """
The unit is the last word of a name, before `_total`. A histogram has the series `_bucket`, `_count`
and `_sum`. On Linux there are also `process_cpu_seconds_total`, `process_resident_memory_bytes` and
the other `process_…` metrics of Prometheus's client library.

What came in is accounted for where `consentgate_consumed_offsets_total` minus
`consentgate_vacant_offsets_total` is the sum of `consentgate_decisions_total`, in every scrape of
every worker; the first two are counted apart from the third. The rules in `deploy/prometheus/rules`
watch that.

`jurisdiction` is the group or the country that the matching rule names, `*`, or `unknown`.
`verdict` and `reason` are explained in [semantics.md](semantics.md).
"""


@dataclass(frozen=True, slots=True)
class DocumentedMetric:
    """One metric as a row of the page."""

    name: str  # as Prometheus shows it, so that a counter ends in `_total`
    kind: str
    labels: Sequence[str]
    bounds: Sequence[float]  # of a histogram's buckets, without the infinite one
    meaning: str

    @property
    def row(self) -> str:
        """The row of the table."""
        labels = ", ".join(f"`{label}`" for label in self.labels)
        bounds = " ".join(f"{bound:g}" for bound in self.bounds)
        return f"| `{self.name}` | {self.kind} | {labels} | {bounds} | {self.meaning} |"


def documented_metrics() -> list[DocumentedMetric]:
    """All metrics of the service in the order of the code, without those of the process itself."""
    metrics = Metrics(lambda: (), lambda: WorkerGauges(0, 0, 0, 0.0, False))
    # There is no public way to the labels and the buckets of a metric that has no series yet.
    return [
        _documented(family, collector)
        for collector in metrics.registry._collector_to_names
        for family in collector.collect()
        if not family.name.startswith("process_")
    ]


def metrics_page() -> str:
    """The whole page, in Markdown."""
    return _HEAD + "".join(f"{metric.row}\n" for metric in documented_metrics()) + _TAIL


def _documented(family: Metric, collector: object) -> DocumentedMetric:
    return DocumentedMetric(
        name=f"{family.name}_total" if family.type == "counter" else family.name,
        kind=family.type,
        labels=getattr(family, "_labelnames", ()) or getattr(collector, "_labelnames", ()),
        bounds=getattr(collector, "_kwargs", {}).get("buckets", ()),
        meaning=family.documentation,
    )


if __name__ == "__main__":
    sys.stdout.write(metrics_page())

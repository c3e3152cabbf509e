"""The Grafana dashboards, as code: `make dashboards` writes them to `deploy/grafana/dashboards`.

Each panel answers the question that its description begins with. All queries work on the metrics
alone, so that the dashboards can do without the recording rules; only what says which alerts fire
needs the alerts. They are in the schema that every Grafana from 10 on reads from files, not in
`dashboardv2`, which the library prefers and only Grafana 12 knows.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "consentgate"

WIDTH = 24
HEIGHT, STAT_HEIGHT = 8, 4

GROUP = 'namespace=~"$namespace", job=~"$job"'
WORKER = f'{GROUP}, instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Query:
    """What to ask Prometheus, and how to call the answer."""

    expression: str
    legend: str

    def target(self, number: int, *, instant: bool) -> prometheus.Dataquery:
        """The query as the so-many-th of its panel."""
        target = prometheus.Dataquery().ref_id(chr(ord("A") + number)).datasource(SOURCE)
        target.expr(self.expression).legend_format(self.legend)
        return target.instant() if instant else target.range()


def number(
    title: str,
    question: str,
    query: Query,
    unit: str = "none",
    *,
    red_from: float | None = None,
) -> stat.Panel:
    """A panel that shows how things are now."""
    steps = [Threshold(value=None, color="green" if red_from is not None else "text")]
    if red_from is not None:
        steps.append(Threshold(value=red_from, color="red"))
    return (
        stat.Panel()
        .title(title)
        .description(question)
        .datasource(SOURCE)
        .height(STAT_HEIGHT)
        .unit(unit)
        .no_value("none")
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(query.target(0, instant=True))
    )


def graph(
    title: str, question: str, *queries: Query, unit: str = "short", stacked: bool = False
) -> timeseries.Panel:
    """A panel that shows how things have been going."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(question)
        .datasource(SOURCE)
        .height(HEIGHT)
        .unit(unit)
        .min(0)
        .fill_opacity(30 if stacked else 5)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for place, query in enumerate(queries):
        panel.with_target(query.target(place, instant=False))
    return panel


def quantiles(metric: str, selector: str, *of: float) -> list[Query]:
    """Quantiles of a histogram over all series of the selector."""
    rate = f"sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    return [Query(f"histogram_quantile({q:g}, {rate})", f"p{100 * q:g}") for q in of]


def rate_of(counter: str, selector: str, *by: str) -> Query:
    """The rate of a counter, by some of its labels."""
    grouped = f"sum by ({', '.join(by)})" if by else "sum"
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Query(f"{grouped} (rate({counter}{{{selector}}}[$__rate_interval]))", legend or "all")


_LINE = [
    DynamicConfigValue("custom.stacking", {"mode": "none"}),
    DynamicConfigValue("custom.fillOpacity", 0),
    DynamicConfigValue("custom.lineWidth", 2),
]
Panel = stat.Panel | timeseries.Panel
Rows = dict[str, Sequence[Panel]]


def overview() -> Rows:
    """Is all well, and if not, what is not?"""
    consumed = f"consentgate_consumed_offsets_total{{{GROUP}}}"
    vacant = f"consentgate_vacant_offsets_total{{{GROUP}}}"
    decided = (
        f"sum without (verdict, reason, jurisdiction) (consentgate_decisions_total{{{GROUP}}})"
    )
    return {
        "Is it well?": [
            number(
                "Alerts",
                "What is wrong by the alerts' measure? Each has a runbook of its name.",
                Query(
                    "count by (alertname) "
                    '(ALERTS{alertname=~"Consentgate.+", alertstate="firing"})',
                    "{{alertname}}",
                ),
                red_from=0,
            ).text_mode(BigValueTextMode.NAME),
            number(
                "Records unaccounted for",
                "Is everything that came in forwarded, withheld or quarantined? What the committed "
                "positions say came in, less the outcomes; anything but 0 is an error.",
                Query(
                    f"sum(abs(({consumed} - {vacant}) - ({decided} or 0 * {consumed})))",
                    "records",
                ),
                red_from=1,
            ),
            number(
                "Partitions that do not decide",
                "Is every partition of the content topic in the care of a worker that decides?",
                Query(
                    f"sum(max by (namespace, job) (consentgate_content_partitions{{{GROUP}}})) - "
                    f"(sum(consentgate_partition_ready{{{GROUP}}}) or vector(0))",
                    "partitions",
                ),
                red_from=1,
            ),
            number(
                "Age of the consent view",
                "How stale is the consent that decisions go by, at worst?",
                Query(f"max(consentgate_consent_staleness_seconds{{{GROUP}}})", "age"),
                "s",
                red_from=10,
            ),
            number(
                "Waiting consent change",
                "How long has the oldest consent change waited for the commit that covers it?",
                Query(f"max(consentgate_consent_uncovered_seconds{{{GROUP}}})", "age"),
                "s",
                red_from=10,
            ),
            number(
                "Policies in force",
                "Is a rollout skewed? More than one policy while it goes on, and never for long.",
                Query(
                    f"count by (name, hash) (consentgate_policy_info{{{GROUP}}})",
                    "{{name}}@{{hash}}",
                ),
            ).text_mode(BigValueTextMode.NAME),
        ],
        "What comes in, and what becomes of it": [
            graph(
                "Records by outcome",
                "How much comes in, and what becomes of it? The line is counted apart from the "
                "areas, and runs along their upper edge.",
                rate_of("consentgate_decisions_total", GROUP, "verdict"),
                Query(
                    f"sum(rate({consumed}[$__rate_interval])) - "
                    f"sum(rate({vacant}[$__rate_interval]))",
                    "in",
                ),
                unit="recps",
                stacked=True,
            ).override_by_name("in", _LINE),
            graph(
                "Withheld and why",
                "Why is content not forwarded?",
                rate_of("consentgate_decisions_total", f'{GROUP}, verdict="withhold"', "reason"),
                unit="recps",
                stacked=True,
            ),
            graph(
                "Records by jurisdiction",
                "Which rules apply? Groups and countries that rules name, `*`, or `unknown`.",
                rate_of("consentgate_decisions_total", GROUP, "jurisdiction"),
                unit="recps",
                stacked=True,
            ),
            graph(
                "Bytes",
                "How much data is that?",
                Query(rate_of("consentgate_consumed_bytes_total", GROUP).expression, "in"),
                Query(rate_of("consentgate_forwarded_bytes_total", GROUP).expression, "forwarded"),
                unit="Bps",
            ),
        ],
        "How fast, how late": [
            graph(
                "From a record's timestamp to its commit",
                "How late are records? The oldest of each batch.",
                *quantiles("consentgate_commit_latency_seconds", GROUP, 0.5, 0.99),
                unit="s",
            ),
            graph(
                "Stages of a batch",
                "Where does the time go? The median of each stage.",
                Query(
                    "histogram_quantile(0.5, sum by (le, stage) "
                    f"(rate(consentgate_batch_stage_seconds_bucket{{{GROUP}}}[$__rate_interval])))",
                    "{{stage}}",
                ),
                unit="s",
            ),
            graph(
                "Records that wait",
                "How much is there still to be decided?",
                Query(f"sum by (job) (consentgate_lag_records{{{GROUP}}})", "{{job}}"),
            ),
        ],
        "Consent": [
            graph(
                "From a withdrawal to its effect",
                "How long until a withdrawal took effect?",
                *quantiles("consentgate_withdrawal_effect_seconds", GROUP, 0.5, 0.99, 1),
                unit="s",
            ),
            graph(
                "Exposure",
                "For how long after somebody's withdrawal was something of theirs committed?",
                *quantiles("consentgate_exposure_seconds", GROUP, 0.99, 1),
                unit="s",
            ),
            graph(
                "From the last look at the consent topic to the commit",
                "How near is a batch to being too slow? It is decided anew beyond "
                "`limits.max_exposure_ms`.",
                *quantiles("consentgate_decision_age_seconds", GROUP, 0.5, 0.99),
                unit="s",
            ),
            graph(
                "Consent records that are not trusted",
                "Whose consent is not to be trusted, and so withheld?",
                rate_of("consentgate_consent_unreadable_total", GROUP, "cause"),
                Query(
                    rate_of("consentgate_consent_misplaced_total", GROUP).expression, "misplaced"
                ),
                unit="recps",
            ),
        ],
        "Quarantine and transactions": [
            graph(
                "Quarantined and why",
                "What is being quarantined, and why?",
                rate_of("consentgate_decisions_total", f'{GROUP}, verdict="quarantine"', "reason"),
                unit="recps",
                stacked=True,
            ),
            graph(
                "Transactions",
                "Do commits succeed? A few that are aborted are no harm; `recycled` ones failed.",
                rate_of("consentgate_transactions_total", GROUP, "outcome"),
                unit="ops",
            ),
            graph(
                "Disturbances",
                "Does the group come to rest?",
                Query(rate_of("consentgate_stalls_total", GROUP).expression, "stalls"),
                Query(rate_of("consentgate_rebalances_total", GROUP).expression, "rebalances"),
                unit="ops",
            ),
        ],
    }


def partitions() -> Rows:
    """Which partition, and which worker, is it?"""

    def each(metric: str) -> Query:
        return Query(f"max by (job, partition) ({metric}{{{WORKER}}})", "{{job}} {{partition}}")

    return {
        "Which partition is stuck?": [
            graph(
                "Phase",
                "How many partitions decide (`ready`), and what do the others wait for? `stalled` "
                "and `bootstrapping`: for consent; `fencing` and `recycling`: for their producer.",
                Query(f"count by (phase) (consentgate_partition_phase{{{WORKER}}})", "{{phase}}"),
                stacked=True,
            ),
            graph(
                "Without a commit",
                "Which partition has records to decide, and commits nothing?",
                each("consentgate_stuck_seconds"),
                unit="s",
            ),
            graph(
                "Age of the consent view",
                "Which partition decides by old consent, or waits for it?",
                each("consentgate_consent_staleness_seconds"),
                unit="s",
            ),
            graph(
                "Waiting consent change",
                "In which partition does a withdrawal wait for its effect?",
                each("consentgate_consent_uncovered_seconds"),
                unit="s",
            ),
            graph(
                "Records that wait",
                "Which partition has how much to do?",
                each("consentgate_lag_records"),
            ),
            graph(
                "Age of the last decided record",
                "Which partition is how late?",
                each("consentgate_lag_seconds"),
                unit="s",
            ),
        ],
        "Which worker is it?": [
            graph(
                "Partitions of each worker",
                "Who has how many partitions?",
                Query(
                    f"count by (instance) (consentgate_partition_ready{{{WORKER}}})",
                    "{{instance}}",
                ),
                stacked=True,
            ),
            graph(
                "Since Kafka's last answer",
                "Which worker does Kafka not answer?",
                Query(
                    f"max by (instance) (consentgate_broker_silence_seconds{{{WORKER}}})",
                    "{{instance}}",
                ),
                unit="s",
            ),
            graph(
                "Members of the group",
                "Which worker does the group not count on?",
                Query(f"max by (instance) (consentgate_group_member{{{WORKER}}})", "{{instance}}"),
            ),
            graph(
                "CPU",
                "Which worker is busy? One core is 1.",
                Query(
                    "sum by (instance) "
                    f"(rate(process_cpu_seconds_total{{{WORKER}}}[$__rate_interval]))",
                    "{{instance}}",
                ),
            ),
            graph(
                "Memory",
                "Which worker grows? The consent tables are most of it.",
                Query(
                    f"max by (instance) (process_resident_memory_bytes{{{WORKER}}})",
                    "{{instance}}",
                ),
                unit="bytes",
            ),
            graph(
                "Subjects",
                "How many people's consent does each worker hold?",
                Query(
                    f"max by (instance) (consentgate_consent_subjects{{{WORKER}}})", "{{instance}}"
                ),
            ),
            graph(
                "Records of a batch",
                "Are batches large enough to be cheap?",
                *quantiles("consentgate_batch_records", WORKER, 0.5, 0.99),
            ),
            number(
                "Versions",
                "Which versions run?",
                Query(f"count by (version) (consentgate_build_info{{{WORKER}}})", "{{version}}"),
            )
            .text_mode(BigValueTextMode.NAME)
            .height(HEIGHT),
        ],
    }


def _variables(*labels: str) -> Iterator[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    known = ""
    for label in labels:
        query = f"label_values(consentgate_build_info{{{known}}}, {label})"
        # What is not there, as a namespace outside Kubernetes, is matched by `.*`.
        yield (
            dashboard.QueryVariable(label)
            .label(label.capitalize())
            .datasource(SOURCE)
            .query({"query": query, "refId": label})
            .definition(query)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
        known += f'{", " if known else ""}{label}=~"${label}"'


def _dashboard(uid: str, title: str, rows: Rows, *labels: str) -> Dashboard:
    made = (
        Dashboard(title)
        .uid(uid)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .link(
            dashboard.DashboardLink("consentgate")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in _variables(*labels):
        made.with_variable(variable)
    numbers = itertools.count(1)
    for name, panels in rows.items():
        made.with_row(Row(name).id(next(numbers)))
        across = len(panels) if isinstance(panels[0], stat.Panel) else _across(len(panels))
        for panel in panels:
            made.with_panel(panel.id(next(numbers)).span(WIDTH // across))
    return made


def _across(count: int) -> int:
    """How many graphs stand beside one another."""
    return 2 if count in (2, 4, 8) else 3


def dashboards() -> dict[Path, str]:
    """The file of each dashboard, and what is to be in it."""
    made = {
        "consentgate": _dashboard("consentgate", "consentgate", overview(), "namespace", "job"),
        "consentgate-partitions": _dashboard(
            "consentgate-partitions",
            "consentgate: partitions and workers",
            partitions(),
            "namespace",
            "job",
            "instance",
        ),
    }
    return {
        FOLDER / f"{uid}.json": json.dumps(each.build(), cls=JSONEncoder, indent=2) + "\n"
        for uid, each in made.items()
    }


if __name__ == "__main__":
    for path, text in dashboards().items():
        path.write_text(text, encoding="utf-8")

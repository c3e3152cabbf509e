"""What the transports of all partitions share."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from consentgate.core.partition import Moment
from consentgate.core.transform import Work
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.content import ContentSource
from consentgate.kafka.layout import Layout
from consentgate.kafka.settings import KafkaSettings

Transform = Callable[[Sequence[Work]], Awaitable[Sequence[bytes | None]]]
"""Transforms records outside of the event loop; None for what cannot be transformed."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Connections, and what is known of the cluster."""

    settings: KafkaSettings
    layout: Layout
    source: ContentSource
    view: ConsentView
    cluster: Cluster
    consent_gap_ms_max: int | None  # how old an unread consent record may be; None: any age
    transform: Transform
    clock: Callable[[], Moment] = read_clock  # of the decisions; all else goes by the machine's

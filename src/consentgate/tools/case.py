"""What is looked at by the doctor: one group's configuration, and the cluster as it was seen."""

import shlex
from dataclasses import dataclass, field

import msgspec
from aiokafka import TopicPartition

from consentgate.config import Config
from consentgate.core.policy import Policy
from consentgate.kafka.layout import Layout
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.survey import ClusterSurvey, Right, TopicSurvey


@dataclass(slots=True)
class Case:
    """What is known by now. The policy is the one that is enforced, with its engines and keys."""

    config: Config
    policy: Policy
    settings: KafkaSettings
    seen: ClusterSurvey = field(default_factory=lambda: ClusterSurvey([], {}))
    layout: Layout | None = None  # None: not settled yet, or not to be settled

    @property
    def roles(self) -> dict[str, str]:
        """The names of the topics by their roles."""
        return msgspec.structs.asdict(self.config.topics)

    def is_described(self, topic: str) -> bool:
        """Whether the topic is there, and to be seen."""
        return topic in self.seen.topics and self.seen.topics[topic].error is None

    def topic(self, topic: str) -> TopicSurvey:
        """A topic that is described."""
        return self.seen.topics[topic]

    def partitions_of(self, topic: str) -> list[int]:
        """The partitions of a topic; none where it is not described."""
        if not self.is_described(topic):
            return []
        return [each.number for each in self.topic(topic).partitions]

    def readable_places(self, *topics: str) -> list[TopicPartition]:
        """The partitions of those of the topics that this user may read."""
        return [
            TopicPartition(topic, partition)
            for topic in topics
            for partition in self.partitions_of(topic)
            if Right.READ in (self.topic(topic).rights or {Right.READ})
        ]

    def tool(self, name: str) -> str:
        """One of Kafka's own tools, with the servers, as the beginning of an advice."""
        beginning = f"{name} --bootstrap-server {self.settings.bootstrap_servers}"
        if self.settings.client.get("security_protocol", "PLAINTEXT") == "PLAINTEXT":
            return beginning
        # How somebody who may do this logs in; docs/security.md has an example of that file.
        return f"{beginning} --command-config admin.properties"

    def reconfigure(self, topic: str, name: str, value: str) -> str:
        """How to change a setting of a topic."""
        tool = f"{self.tool('kafka-configs.sh')} --alter --entity-type topics"
        return f"{tool} --entity-name {topic} --add-config {name}={value}"

    def grant(self, *operations: Right | str, on: str) -> str:
        """How to grant this user operations on a resource, such as `--topic content-events`."""
        # Who logs in by a certificate or a token has the name that the broker makes of it.
        user = shlex.quote(f"User:{self.config.kafka.get('sasl.username', '…')}")
        asked = " ".join(f"--operation {operation}" for operation in operations)
        return f"{self.tool('kafka-acls.sh')} --add --allow-principal {user} {asked} {on}"

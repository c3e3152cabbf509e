"""The configuration: one YAML file, `${VAR:default}` in its values, any key by environment."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from consentgate.core.decide import Limits
from consentgate.core.decode import ConsentFields, ContentFields, path_problems
from consentgate.core.document import Document, Problem, Value, key_text, nearest, parse_document
from consentgate.core.document import Path as KeyPath
from consentgate.errors import ConfigError

PREFIX = "CONSENTGATE_"
CONFIG_VARIABLE = "CONSENTGATE_CONFIG"

KAFKA_SETTINGS = frozenset(
    {
        "bootstrap.servers",
        "client.id",
        "compression.type",
        "enable.sasl.oauthbearer.unsecure.jwt",
        "fetch.max.bytes",
        "fetch.wait.max.ms",
        "heartbeat.interval.ms",
        "https.ca.location",
        "max.partition.fetch.bytes",
        "metadata.max.age.ms",
        "retry.backoff.ms",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.oauthbearer.client.id",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.extensions",
        "sasl.oauthbearer.method",
        "sasl.oauthbearer.scope",
        "sasl.oauthbearer.token.endpoint.url",
        "sasl.password",
        "sasl.username",
        "security.protocol",
        "session.timeout.ms",
        "socket.timeout.ms",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.endpoint.identification.algorithm",
        "ssl.key.location",
        "ssl.key.password",
        "transaction.timeout.ms",
    }
)
"""What the `kafka` section may hold; librdkafka's names."""

DECLARED_SETTINGS = frozenset(
    {
        "cleanup.policy",
        "delete.retention.ms",
        "max.message.bytes",
        "message.timestamp.after.max.ms",
        "message.timestamp.before.max.ms",
        "message.timestamp.type",
        "min.compaction.lag.ms",
        "retention.bytes",
        "retention.ms",
        "unclean.leader.election.enable",
    }
)
"""What may be declared of a topic: the settings that are looked at."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([^}]*))?\}")

_TopicName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}$")]
_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Depth = Annotated[int, msgspec.Meta(ge=1, le=250)]
"""Deeper than this the parsers themselves give up, each at a depth of its own."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file whose keys are all known."""


class Topics(_Section, frozen=True):
    """The names of the topics that are read and written."""

    content: _TopicName = "content-events"
    consent: _TopicName = "consent-state"
    training: _TopicName = "training-data"
    decisions: _TopicName = "consent-decisions"
    quarantine: _TopicName = "content-quarantine"
    retractions: _TopicName = "training-retractions"


class ConsentConfig(_Section, frozen=True):
    """How the consent topic is read."""

    scope: Literal["auto", "partition", "global"] = "auto"
    partitioner: Literal["murmur2"] = "murmur2"
    fields: ConsentFields = ConsentFields()


class ContentConfig(_Section, frozen=True):
    """How the content topic is read."""

    key_is_subject: bool = True
    fields: ContentFields = ContentFields()


class HttpConfig(_Section, frozen=True):
    """Where metrics and health are served."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080


class LimitsConfig(_Section, frozen=True):
    """What one record may be, and how long a decision may be on its way."""

    max_value_bytes: _Positive = 900_000
    max_depth: _Depth = 64
    max_future_ms: _Positive = 3_600_000
    max_exposure_ms: _Positive = 5_000

    def of_content(self) -> Limits:
        """The limits as the decision needs them."""
        return Limits(
            max_value_bytes=self.max_value_bytes,
            max_depth=self.max_depth,
            max_future_ms=self.max_future_ms,
        )


class KeysConfig(_Section, frozen=True):
    """Paths of key files."""

    pseudonym: list[str] = []
    signing: str | None = None


class RedactionConfig(_Section, frozen=True):
    """How records are redacted."""

    processes: _Positive | None = None


class Config(_Section, frozen=True):
    """Everything that a worker needs to know; the defaults are those of a laptop."""

    kafka: dict[str, str | int | float | bool] = msgspec.field(
        default_factory=lambda: {"bootstrap.servers": "localhost:9092"}
    )
    group: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9._-]{1,128}$")] = "consentgate"
    topics: Topics = Topics()
    declared: dict[str, dict[str, str | int | bool]] = {}
    policy: str = "opt-in"
    consent: ConsentConfig = ConsentConfig()
    content: ContentConfig = ContentConfig()
    http: HttpConfig = HttpConfig()
    limits: LimitsConfig = LimitsConfig()
    keys: KeysConfig = KeysConfig()
    redaction: RedactionConfig = RedactionConfig()
    snapshot: str | None = None

    def __repr__(self) -> str:
        # The client's settings hold passwords.
        return f"Config(group={self.group!r})"


def load_config(path: str | None, environment: Mapping[str, str] | None = None) -> Config:
    """The configuration of a file (None: the defaults) and the environment.

    Raises:
        ConfigError: naming file, line, key and what to write instead.
    """
    env = os.environ if environment is None else environment
    path = path or env.get(CONFIG_VARIABLE)
    document = _read(path) if path else Document("(defaults)", {}, {}, ())
    if document.problems:
        raise ConfigError("\n".join(map(str, document.problems)))
    values = document.value if document.value is not None else {}
    if not isinstance(values, dict):
        raise ConfigError(f"{document.file}:1: the configuration must be a mapping of keys")
    _refuse_unknown_keys(document, values)
    values = _substitute(document, values, (), env)
    _override(values, env)
    return _check(_convert(document, values), document)


def _read(path: str) -> Document:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from None
    return parse_document(text, path)


def _refuse_unknown_keys(document: Document, values: Mapping[str, Value]) -> None:
    problems = list(_unknown_keys(document, values, Config, ()))
    kafka = values.get("kafka")
    if isinstance(kafka, dict):
        problems += document.unknown_keys(("kafka",), kafka, sorted(KAFKA_SETTINGS))
    declared = values.get("declared")
    for topic, settings in declared.items() if isinstance(declared, dict) else ():
        if isinstance(settings, dict):
            path = ("declared", topic)
            problems += document.unknown_keys(path, settings, sorted(DECLARED_SETTINGS))
    if problems:
        raise ConfigError("\n".join(map(str, problems)))


def _unknown_keys(
    document: Document, values: Mapping[str, Value], section: Any, path: KeyPath
) -> Iterator[Problem]:
    known = _fields_of(section)
    if not known:
        return
    yield from document.unknown_keys(path, values, known)
    for name, value in values.items():
        if isinstance(value, dict) and name in known:
            yield from _unknown_keys(document, value, known[name], (*path, name))


def _fields_of(section: Any) -> dict[str, Any]:
    """Name to type of the keys of a section; nothing for what is no section."""
    info = msgspec.inspect.type_info(section)
    if isinstance(info, msgspec.inspect.StructType):
        return {
            field.name: field.type.cls if hasattr(field.type, "cls") else str
            for field in info.fields
        }
    if isinstance(info, msgspec.inspect.DataclassType):
        return {field.name: str for field in info.fields}
    return {}


def _substitute(document: Document, value: Any, path: KeyPath, env: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _substitute(document, v, (*path, k), env) for k, v in value.items()}
    if isinstance(value, list):
        return [_substitute(document, v, (*path, i), env) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found: str | None = env.get(name, default)
        if found is None:
            message = f"the variable {name} is not set, and no default is given"
            raise ConfigError(str(document.problem(path, message)))
        return str(found)

    return _VARIABLE.sub(replace, value)


def _override(values: dict[str, Any], env: Mapping[str, str]) -> None:
    """Put `CONSENTGATE_SECTION__KEY` variables, and what `..._FILE` ones name, over the file."""
    for variable, text in sorted(env.items()):
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        value, path = text, _key_path(variable)
        if path is None and variable.endswith("_FILE"):
            path = _key_path(variable.removesuffix("_FILE"))
            value = _read_secret(variable, text)
        if path is None:
            raise ConfigError(f"the variable {variable} names no key of the configuration")
        section: Any = values
        for name in path[:-1]:
            section = section.setdefault(name, {}) if isinstance(section, dict) else None
        if isinstance(section, dict):  # Else the file's value is refused, by its line.
            section[path[-1]] = value


def _key_path(variable: str) -> list[str] | None:
    names = variable.removeprefix(PREFIX).lower().split("__")
    if names[0] == "kafka" and len(names) == 2:
        setting = names[1].replace("_", ".")
        return ["kafka", setting] if setting in KAFKA_SETTINGS else None
    known: Any = Config
    for name in names:
        fields = _fields_of(known)
        if name not in fields:
            return None
        known = fields[name]
    return names


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"cannot read the file that {variable} names") from None


def _convert(document: Document, values: Any) -> Config:
    try:
        return msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        path = tuple(part for part in re.split(r"[.\[\]]+", where.rstrip("`")) if part)
        shown = key_text(path) if path else "(document)"
        line = document.line(path)
        raise ConfigError(f"{document.file}:{line}: {shown}: {message}") from None


def _check(config: Config, document: Document) -> Config:
    """Refuse what is well formed and yet cannot work."""
    paths = [str(problem) for problem in _unusable_paths(config, document)]
    problems = []
    if not config.content.key_is_subject and config.consent.scope == "partition":
        problems.append("content.key_is_subject: false needs consent.scope: global")
    topics = msgspec.structs.astuple(config.topics)
    if len(set(topics)) < len(topics):
        problems.append("topics: each of them must have a name of its own")
    problems += _declared_problems(config.declared, topics)
    if config.snapshot == "":
        problems.append("snapshot: must be the path of a directory, or null")
    if paths or problems:
        raise ConfigError("\n".join([*paths, *(f"{document.file}: {each}" for each in problems)]))
    return config


def _declared_problems(
    declared: Mapping[str, Mapping[str, str | int | bool]], topics: Collection[str]
) -> Iterator[str]:
    for topic, settings in declared.items():
        if topic not in topics:
            yield f"declared.{topic}: there is no such topic, {nearest(topic, topics)}"
        for name, value in settings.items():
            if name.endswith((".ms", ".bytes")) and not re.fullmatch(r"-?[0-9]{1,19}", str(value)):
                yield f"declared.{topic}.{name}: must be an integer"


def _unusable_paths(config: Config, document: Document) -> Iterator[Problem]:
    """A problem for each field of a record that cannot be where its path says."""
    for section, fields in (("content", config.content.fields), ("consent", config.consent.fields)):
        for name, problem in path_problems(fields).items():
            yield document.problem((section, "fields", name), problem)

"""The configuration: its defaults, what may be overridden, and what is refused, where and how."""

from pathlib import Path

import msgspec
import pytest

from consentgate.config import Config, load_config
from consentgate.core.decide import Limits
from consentgate.core.decode import ConsentFields, ContentFields
from consentgate.errors import EXIT_CONFIG, ConfigError

DOCUMENTED = """\
kafka:                         # librdkafka names: security.protocol, sasl.mechanism, …
  bootstrap.servers: localhost:9092
group: consentgate             # consumer group, prefix of every transactional.id
topics:
  content: content-events
  consent: consent-state
  training: training-data
  decisions: consent-decisions
  quarantine: content-quarantine
  retractions: training-retractions
declared: {}                   # settings of topics that this user may not read
policy: linkedin               # a preset's name or a path
consent: {scope: auto, partitioner: murmur2, fields: {subject: subject, \
jurisdiction: jurisdiction, adult: adult, choices: choices}}
content: {key_is_subject: true, fields: {id: id, subject: subject, kind: kind, \
visibility: visibility, created_at: created_at, body: body}}
http: {host: 127.0.0.1, port: 8080}
limits: {max_value_bytes: 900000, max_depth: 64, max_future_ms: 3600000, max_exposure_ms: 5000}
keys: {pseudonym: [], signing: null}   # paths
snapshot: null                 # a directory, for warm restarts
"""
ALONE = {"PATH": "/bin", "HOME": "/"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "consentgate.yaml"


def load(file: Path, text: str, **environment: str) -> Config:
    file.write_text(text, "utf-8")
    return load_config(str(file), {**ALONE, **environment})


def refused(file: Path, text: str, **environment: str) -> str:
    """What is said of it, without the directory."""
    with pytest.raises(ConfigError) as raised:
        load(file, text, **environment)
    assert raised.value.exit_code == EXIT_CONFIG
    return str(raised.value).replace(f"{file.parent}/", "")


# Defaults.


def test_the_defaults_are_those_of_the_documented_file(file: Path) -> None:
    # Its policy is an example's: who names none gets the one that uses nobody without a clear yes.
    documented = load(file, DOCUMENTED)
    assert documented.policy == "linkedin"
    assert msgspec.structs.replace(documented, policy="opt-in") == load_config(None, ALONE)


def test_without_a_policy_nobody_is_used_without_a_clear_yes() -> None:
    assert load_config(None, ALONE).policy == "opt-in"


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_an_empty_file_has_the_defaults(file: Path, text: str) -> None:
    assert load(file, text) == load_config(None, ALONE)


def test_a_key_that_is_left_out_has_its_default(file: Path) -> None:
    config = load(file, "topics: {content: posts}\nlimits: {max_depth: 8}\n")
    assert (config.topics.content, config.topics.consent) == ("posts", "consent-state")
    assert (config.limits.max_depth, config.limits.max_value_bytes) == (8, 900_000)
    assert config.consent.fields == ConsentFields()
    assert config.content.fields == ContentFields()


def test_the_default_limits_are_the_decisions_own() -> None:
    assert load_config(None, ALONE).limits.of_content() == Limits()


def test_the_configured_limits_are_the_decisions(file: Path) -> None:
    text = "limits: {max_value_bytes: 1, max_depth: 2, max_future_ms: 3}"
    limits = load(file, text).limits.of_content()
    assert limits == Limits(max_value_bytes=1, max_depth=2, max_future_ms=3)


def test_http_is_served_on_the_loopback_only() -> None:
    assert load_config(None, ALONE).http.host == "127.0.0.1"


# The file.


def test_the_environment_may_name_the_file(file: Path) -> None:
    file.write_text("group: one", "utf-8")
    assert load_config(None, {"CONSENTGATE_CONFIG": str(file)}).group == "one"
    other = file.with_name("other.yaml")
    other.write_text("group: two", "utf-8")
    assert load_config(str(other), {"CONSENTGATE_CONFIG": str(file)}).group == "two"


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*yaml: No such file or directory"):
        load_config(str(file), ALONE)
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(str(file.parent), ALONE)
    file.write_bytes(b"group: \xff")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        load_config(str(file), ALONE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "consentgate.yaml:1: the configuration must be a mapping of keys"),
        ("a: b: c", "consentgate.yaml:1: (document): a colon where no key can be"),
        ("group: a\ngroup: b\n", "consentgate.yaml:2: group: repeats the key of line 1"),
        ("group: *a\n", "consentgate.yaml:1: group: aliases are not supported"),
    ],
)
def test_what_is_no_plain_yaml_mapping_is_refused(file: Path, text: str, message: str) -> None:
    assert refused(file, text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groop: x\n", "consentgate.yaml:1: groop: unknown key, did you mean 'group'?"),
        (
            "group: x\nlimits:\n  max_dept: 5\n",
            "consentgate.yaml:3: limits.max_dept: unknown key, did you mean 'max_depth'?",
        ),
        (
            "consent:\n  fields:\n    subjct: x\n",
            "consentgate.yaml:3: consent.fields.subjct: unknown key, did you mean 'subject'?",
        ),
        (
            "kafka:\n  bootstrp.servers: x\n",
            "consentgate.yaml:2: kafka.bootstrp.servers: unknown key, "
            "did you mean 'bootstrap.servers'?",
        ),
        (
            "http:\n  zzz: 1\n",
            "consentgate.yaml:2: http.zzz: unknown key, use one of host, port",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_key(
    file: Path, text: str, message: str
) -> None:
    assert refused(file, text) == message


def test_all_unknown_keys_are_named_at_once(file: Path) -> None:
    message = refused(file, "groop: x\nlimits: {max_dept: 5}\nkafka: {acks: 0}\n")
    lines = [line.split(": unknown key")[0] for line in message.splitlines()]
    assert lines == [
        "consentgate.yaml:1: groop",
        "consentgate.yaml:2: limits.max_dept",
        "consentgate.yaml:3: kafka.acks",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits:\n  max_depth: deep\n", "2: limits.max_depth: Expected `int`, got `str`"),
        ("limits:\n  max_depth: 1.5\n", "2: limits.max_depth: Expected `int`, got `float`"),
        ("limits:\n  max_depth: true\n", "2: limits.max_depth: Expected `int`, got `bool`"),
        ("limits:\n  max_depth: 0\n", "2: limits.max_depth: Expected `int` >= 1"),
        ("limits:\n  max_depth: 251\n", "2: limits.max_depth: Expected `int` <= 250"),
        ("limits:\n\n  max_future_ms: -1\n", "3: limits.max_future_ms: Expected `int` >= 1"),
        ("limits:\n  []\n", "1: limits: Expected `object`, got `array`"),
        ("limits:\n", "1: limits: Expected `object`, got `null`"),
        ("group: 5\n", "1: group: Expected `str`, got `int`"),
        ("group: a b\n", "1: group: Expected `str` matching regex '^[a-zA-Z0-9._-]{1,128}$'"),
        ("policy: [a]\n", "1: policy: Expected `str`, got `array`"),
        ("http: {port: 65536}\n", "1: http.port: Expected `int` <= 65535"),
        ("topics:\n  content: a/b\n", "2: topics.content: Expected `str` matching regex"),
        ("content:\n  key_is_subject: maybe\n", "2: content.key_is_subject: Expected `bool`"),
        ("content:\n  key_is_subject: yes\n", "2: content.key_is_subject: Expected `bool`"),
        ("content:\n  fields:\n    id: 5\n", "3: content.fields.id: Expected `str`, got `int`"),
        ("consent:\n  scope: all\n", "2: consent.scope: Invalid enum value 'all'"),
        ("consent:\n  partitioner: crc32\n", "2: consent.partitioner: Invalid enum value 'crc32'"),
        ("kafka:\n  client.id: [x]\n", "1: kafka: Expected `bool | int | float | str`"),
        ("kafka: x\n", "1: kafka: Expected `object`, got `str`"),
    ],
)
def test_a_wrong_type_is_refused_with_its_line(file: Path, text: str, message: str) -> None:
    assert refused(file, text).startswith(f"consentgate.yaml:{message}")


# Well formed, and yet not to be worked with.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('snapshot: ""', "snapshot: must be the path of a directory, or null"),
        (
            "content: {key_is_subject: false}\nconsent: {scope: partition}",
            "content.key_is_subject: false needs consent.scope: global",
        ),
        (
            "topics: {training: content-events}",
            "topics: each of them must have a name of its own",
        ),
    ],
)
def test_what_this_version_cannot_do_is_refused(file: Path, text: str, message: str) -> None:
    assert refused(file, text) == f"consentgate.yaml: {message}"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            "group: g\ncontent:\n  fields:\n    id: ''\n",
            ["4: content.fields.id: the path '' has an empty name in it"],
        ),
        (
            "consent:\n  fields:\n    adult: person..adult\n",
            ["3: consent.fields.adult: the path 'person..adult' has an empty name in it"],
        ),
        (
            "content:\n  fields:\n    id: subject\n",
            [
                "3: content.fields.id: the path 'subject' meets another field's path, 'subject' "
                "(subject)",
                "2: content.fields.subject: the path 'subject' meets another field's path, "
                "'subject' (id)",
            ],
        ),
        (
            "consent:\n  fields:\n    subject: data\n    choices: data.choices\n",
            [
                "3: consent.fields.subject: the path 'data' meets another field's path, "
                "'data.choices' (choices)",
                "4: consent.fields.choices: the path 'data.choices' meets another field's path, "
                "'data' (subject)",
            ],
        ),
    ],
)
def test_a_field_that_cannot_be_there_is_refused_by_its_line_and_key(
    file: Path, text: str, messages: list[str]
) -> None:
    assert refused(file, text).splitlines() == [f"consentgate.yaml:{each}" for each in messages]


def test_the_body_may_hold_other_fields(file: Path) -> None:
    text = "content: {fields: {body: data, subject: data.author.id}}"
    assert load(file, text).content.fields.subject == "data.author.id"


def test_everything_that_cannot_work_is_told_at_once(file: Path) -> None:
    text = "snapshot: ''\ntopics: {training: content-events}\n"
    assert len(refused(file, text).splitlines()) == 2


@pytest.mark.parametrize("scope", ["auto", "global"])
def test_a_key_that_is_not_the_subject_goes_with_global_scope(file: Path, scope: str) -> None:
    text = f"content: {{key_is_subject: false}}\nconsent: {{scope: {scope}}}"
    assert not load(file, text).content.key_is_subject


def test_fields_may_have_any_names(file: Path) -> None:
    fields = load(file, 'content: {fields: {created_at: "@timestamp", id: meta.post-id}}')
    assert fields.content.fields == ContentFields(created_at="@timestamp", id="meta.post-id")


# Variables in values.


def test_a_variable_stands_for_its_value(file: Path) -> None:
    text = "group: ${G}\ntopics: {content: 'a-${X}-${Y}'}\nhttp: {port: '${P}'}\n"
    config = load(file, text, G="mine", X="1", Y="2", P="81")
    assert (config.group, config.topics.content, config.http.port) == ("mine", "a-1-2", 81)


def test_a_variable_may_have_a_default(file: Path) -> None:
    text = "group: ${G:theirs}\nkafka: {bootstrap.servers: '${B:h1:9092,h2:9092}'}\n"
    assert load(file, text).group == "theirs"
    assert load(file, text).kafka["bootstrap.servers"] == "h1:9092,h2:9092"
    assert load(file, text, G="mine").group == "mine"


def test_an_empty_default_and_an_empty_variable_are_values(file: Path) -> None:
    config = load(file, 'kafka: {sasl.password: "${A:}", sasl.username: "${B:x}"}', B="")
    assert (config.kafka["sasl.password"], config.kafka["sasl.username"]) == ("", "")


def test_a_variable_without_value_and_default_is_refused_with_its_line(file: Path) -> None:
    message = refused(file, "group: a\ntopics:\n  content: ${NONE}\n")
    assert message == (
        "consentgate.yaml:3: topics.content: the variable NONE is not set, and no default is given"
    )


def test_what_only_looks_like_a_variable_is_text(file: Path) -> None:
    config = load(file, 'kafka: {sasl.password: "$A ${1} ${A-b} $"}', A="x")
    assert config.kafka["sasl.password"] == "$A ${1} ${A-b} $"


def test_a_value_is_not_substituted_twice(file: Path) -> None:
    assert load(file, 'kafka: {client.id: "${A}"}', A="${B}", B="x").kafka["client.id"] == "${B}"


# The environment over the file.


@pytest.mark.parametrize(
    ("variable", "value", "path"),
    [
        ("CONSENTGATE_GROUP", "mine", "group"),
        ("CONSENTGATE_POLICY", "meta", "policy"),
        ("CONSENTGATE_LIMITS__MAX_DEPTH", "12", "limits.max_depth"),
        ("CONSENTGATE_LIMITS__MAX_EXPOSURE_MS", "70", "limits.max_exposure_ms"),
        ("CONSENTGATE_HTTP__PORT", "0", "http.port"),
        ("CONSENTGATE_TOPICS__TRAINING", "t", "topics.training"),
        ("CONSENTGATE_CONSENT__SCOPE", "global", "consent.scope"),
        ("CONSENTGATE_CONSENT__FIELDS__ADULT", "of.age", "consent.fields.adult"),
        ("CONSENTGATE_CONTENT__FIELDS__CREATED_AT", "at", "content.fields.created_at"),
    ],
)
def test_any_key_can_be_set_by_the_environment(
    file: Path, variable: str, value: str, path: str
) -> None:
    for config in (
        load(file, DOCUMENTED, **{variable: value}),
        load_config(None, {variable: value}),
    ):
        found: object = config
        for name in path.split("."):
            found = getattr(found, name)
        assert str(found) == value


def test_a_boolean_can_be_set_by_the_environment(file: Path) -> None:
    variable = "CONSENTGATE_CONTENT__KEY_IS_SUBJECT"
    for text in ("false", "False", "0"):
        assert not load(file, "", **{variable: text}).content.key_is_subject
    assert load(
        file, "content: {key_is_subject: false}", **{variable: "true"}
    ).content.key_is_subject


def test_kafkas_settings_can_be_set_by_the_environment(file: Path) -> None:
    config = load(
        file,
        "kafka: {bootstrap.servers: 'a:1', client.id: x}\n",
        CONSENTGATE_KAFKA__BOOTSTRAP_SERVERS="b:2",
        CONSENTGATE_KAFKA__SSL_CA_LOCATION="/ca.pem",
        CONSENTGATE_KAFKA__MAX_PARTITION_FETCH_BYTES="5",
    )
    assert config.kafka == {
        "bootstrap.servers": "b:2",
        "client.id": "x",
        "ssl.ca.location": "/ca.pem",
        "max.partition.fetch.bytes": "5",
    }


def test_a_secret_can_be_read_from_a_file(file: Path) -> None:
    secret = file.with_name("secret")
    secret.write_text("pa ss\n", "utf-8")
    config = load(file, "", CONSENTGATE_KAFKA__SASL_PASSWORD_FILE=str(secret))
    assert config.kafka["sasl.password"] == "pa ss"


def test_a_secret_that_looks_like_a_number_stays_what_it_is(file: Path) -> None:
    for password in ("0123", "1e5", "true", "null", "1.0"):
        config = load(file, "", CONSENTGATE_KAFKA__SASL_PASSWORD=password)
        assert config.kafka["sasl.password"] == password
        config = load(file, f'kafka: {{sasl.password: "{password}"}}')
        assert config.kafka["sasl.password"] == password


def test_a_secret_that_cannot_be_read_is_refused_without_a_word_of_it(file: Path) -> None:
    message = refused(file, "", CONSENTGATE_KAFKA__SASL_PASSWORD_FILE="/no/such/hunter2")
    assert message == ("cannot read the file that CONSENTGATE_KAFKA__SASL_PASSWORD_FILE names")


@pytest.mark.parametrize(
    "variable",
    [
        "CONSENTGATE_GROOP",
        "CONSENTGATE_LIMITS__MAX_DEPT",
        "CONSENTGATE_LIMITS__MAX_DEPTH__MORE",
        "CONSENTGATE_KAFKA__ACKS",
        "CONSENTGATE_",
        "CONSENTGATE_LIMITS_MAX_DEPTH",
    ],
)
def test_a_variable_that_names_no_key_is_refused(file: Path, variable: str) -> None:
    assert refused(file, "", **{variable: "1"}) == (
        f"the variable {variable} names no key of the configuration"
    )


def test_a_wrong_type_from_the_environment_is_refused(file: Path) -> None:
    message = refused(file, "group: x\nlimits: {}\n", CONSENTGATE_LIMITS__MAX_DEPTH="deep")
    assert message == "consentgate.yaml:2: limits.max_depth: Expected `int`, got `str`"
    with pytest.raises(ConfigError, match=r"\(defaults\):1: limits.max_depth: Expected"):
        load_config(None, {"CONSENTGATE_LIMITS__MAX_DEPTH": "deep"})


@pytest.mark.parametrize("section", ["", " 5", " x", " []"])
def test_a_section_that_is_none_is_refused_also_under_a_variable(file: Path, section: str) -> None:
    message = refused(file, f"group: x\nlimits:{section}\n", CONSENTGATE_LIMITS__MAX_DEPTH="5")
    assert message.startswith("consentgate.yaml:2: limits: Expected `object`")


def test_a_section_and_a_key_of_it_cannot_both_be_variables(file: Path) -> None:
    variables = {"CONSENTGATE_CONTENT": "x", "CONSENTGATE_CONTENT__FIELDS__ID": "y"}
    assert "content: Expected `object`, got `str`" in refused(file, "", **variables)


def test_other_variables_do_not_matter(file: Path) -> None:
    assert load(file, "", CONSENT="x", consentgate_group="y", XCONSENTGATE_GROUP="z") == (
        load_config(None, {})
    )


# What is declared of topics whose settings may not be read.


def test_what_is_declared_is_kept_as_it_is_written(file: Path) -> None:
    text = (
        "topics: {consent: a.b}\n"
        "declared:\n"
        "  a.b: {cleanup.policy: compact, unclean.leader.election.enable: false}\n"
        "  consent-decisions: {retention.ms: -1, retention.bytes: '-1'}\n"
    )
    assert load(file, text).declared == {
        "a.b": {"cleanup.policy": "compact", "unclean.leader.election.enable": False},
        "consent-decisions": {"retention.ms": -1, "retention.bytes": "-1"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "declared:\n  consent-state:\n    cleanup.polcy: compact\n",
            "consentgate.yaml:3: declared.consent-state.cleanup.polcy: unknown key, "
            "did you mean 'cleanup.policy'?",
        ),
        (
            "declared:\n  consent-stat: {cleanup.policy: compact}\n",
            "consentgate.yaml: declared.consent-stat: there is no such topic, "
            "did you mean 'consent-state'?",
        ),
        (
            "topics: {consent: other}\ndeclared:\n  consent-state: {}\n",
            "consentgate.yaml: declared.consent-state: there is no such topic, ",
        ),
        (
            "declared:\n  consent-state: {delete.retention.ms: 1 day}\n",
            "consentgate.yaml: declared.consent-state.delete.retention.ms: must be an integer",
        ),
        (
            "declared:\n  consent-state: {delete.retention.ms: true}\n",
            "consentgate.yaml: declared.consent-state.delete.retention.ms: must be an integer",
        ),
        ("declared:\n  consent-state: compact\n", "consentgate.yaml:1: declared: "),
        ("declared:\n  - consent-state\n", "consentgate.yaml:1: declared: "),
        (
            "declared:\n  consent-state: {cleanup.policy: [compact]}\n",
            "consentgate.yaml:1: declared: ",
        ),
    ],
)
def test_what_can_mean_nothing_is_not_declared(file: Path, text: str, message: str) -> None:
    assert refused(file, text).startswith(message)


def test_a_configuration_does_not_show_its_passwords() -> None:
    config = Config(kafka={"sasl.password": "hunter2"}, group="g")
    assert "hunter2" not in f"{config!r} {config}"

"""Questions: why a record came out as it did, and what another policy would change."""

from pathlib import Path
from typing import Annotated

import orjson
import typer

from consentgate.cli.options import (
    ConfigOption,
    Format,
    FormatOption,
    PolicyOption,
    configured,
    moment,
    run_with_progress,
)
from consentgate.config import Config, load_config
from consentgate.engines import equip
from consentgate.errors import EXIT_FOUND
from consentgate.policies import load_policy, read_policy
from consentgate.tools.diff import Side, compare_fixtures, compare_topics, diff_json, diff_lines
from consentgate.tools.explain import (
    FixtureLine,
    Question,
    answer_json,
    answer_lines,
    explain_line,
    explain_record,
    parse_place,
)
from consentgate.tools.fixtures import find_fixtures

commands = typer.Typer()


@commands.command()
def explain(
    record: Annotated[
        str,
        typer.Argument(help="FIXTURE.jsonl:LINE, or TOPIC-PARTITION@OFFSET of a content record."),
    ],
    config_path: ConfigOption = None,
    policy_name: PolicyOption = None,
    now: Annotated[
        int | None,
        typer.Option(
            "--now",
            parser=moment,
            metavar="TIME",
            help="Decide as of this moment, such as 2025-11-03T00:00:00Z.",
        ),
    ] = None,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Say why one record is or is not forwarded. Say, too, what would have to change.

    A record of Kafka is explained as of the ledger entry that accounts for it: the consent that was
    seen then, at that moment. No payload is printed, and no subject id.

    Example: consentgate explain --policy linkedin src/consentgate/demo/story.jsonl:10

    Example: consentgate explain -c consentgate.yaml content-events-3@1234
    """
    place = parse_place(record)
    config, policy = configured(config_path, policy_name)
    _, policy_file = read_policy(policy_name or config.policy)
    question = Question(config, policy, policy_file, now)
    if isinstance(place, FixtureLine):
        answer = explain_line(question, place)
    else:
        answer = run_with_progress(
            "explain", lambda on_progress: explain_record(question, place, on_progress)
        )
    if fmt is Format.JSON:
        print(orjson.dumps(answer_json(answer)).decode())
    else:
        print("\n".join(answer_lines(answer)))


@commands.command()
def diff(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Two policies, or one where --at is given twice; then fixtures or directories.",
            metavar="POLICY|FIXTURE",
        ),
    ],
    config_path: ConfigOption = None,
    moments: Annotated[
        list[int] | None,
        typer.Option(
            "--at",
            parser=moment,
            metavar="TIME",
            help="Decide as of this moment; give it twice to compare one policy at two moments.",
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Instead of fixtures: the last so many offsets of each content partition.",
        ),
    ] = None,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Show what two policies decide differently. Exit 1 where anything changes.

    Example: consentgate diff linkedin opt-in src/consentgate/demo/story.jsonl

    Example: consentgate diff linkedin --at 2025-11-02T00:00:00Z --at 2025-11-03T00:00:00Z
    src/consentgate/demo/story.jsonl

    Example: consentgate diff linkedin mine.yaml -c consentgate.yaml --last 10000
    """
    config = load_config(config_path)
    before, after, files = _sides(config, names, moments or [])
    if bool(files) is (last is not None):
        raise typer.BadParameter("give either fixture files, or --last N for the topics")
    if last is None:
        comparison = compare_fixtures(config, before, after, find_fixtures(files))
    else:
        comparison = run_with_progress(
            "diff", lambda on_progress: compare_topics(config, before, after, last, on_progress)
        )
    if fmt is Format.JSON:
        print(orjson.dumps(diff_json(before, after, comparison)).decode())
    else:
        print("\n".join(diff_lines(before, after, comparison)))
    if comparison.changed:
        raise typer.Exit(EXIT_FOUND)


def _sides(config: Config, names: list[str], moments: list[int]) -> tuple[Side, Side, list[Path]]:
    """What is compared, and the fixture files that are left of the arguments."""
    if len(moments) > 2:
        raise typer.BadParameter("--at can be given twice at most")
    number = 1 if len(moments) == 2 else 2
    if len(names) < number:
        raise typer.BadParameter("two policies are needed, or one with --at given twice")
    if fixture := next((name for name in names[:number] if name.endswith(".jsonl")), None):
        raise typer.BadParameter(
            f"{fixture} stands where a policy is wanted; two policies are needed, or one with "
            "--at given twice"
        )
    policies = [equip(config, load_policy(name))[0] for name in names[:number]]
    moment = moments[0] if moments else None
    before = Side(policies[0], moment)
    after = Side(policies[-1], moments[-1] if moments else None)
    return before, after, [Path(name) for name in names[number:]]

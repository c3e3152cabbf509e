"""The transparency report."""

import asyncio
import logging
from typing import Annotated

import typer

from consentgate.cli.options import LOG_JSON, ConfigOption, LogJsonOption, PolicyOption, pinned
from consentgate.config import load_config
from consentgate.errors import ConfigError
from consentgate.policies import load_policy
from consentgate.service.logs import configure_logs
from consentgate.signals import exit_on_sigterm

commands = typer.Typer()


@commands.command()
def report(
    config_path: ConfigOption = None,
    policy_name: PolicyOption = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="The port; else the configuration's http.port."),
    ] = None,
    log_json: LogJsonOption = LOG_JSON,
) -> None:
    """Count what the ledger comes to, and serve the figures.

    By jurisdiction, reason, policy and time, and how soon withdrawals took effect.

    Example: consentgate report -c consentgate.yaml --port 8081
    """
    exit_on_sigterm()
    config = load_config(config_path)
    policy = load_policy(policy_name or config.policy)
    try:
        # Nothing else needs Faust, which takes a while to import.
        from consentgate.report.answers import ConfiguredPolicy  # noqa: PLC0415
        from consentgate.report.run import Report  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "faust":
            raise
        raise ConfigError(
            "the report needs Faust, which is not installed: pip install 'consentgate[report]'"
        ) from None
    configure_logs(json=log_json)
    # Faust logs each step of its own under the names of the modules that its classes are in.
    for name in ("faust", "mode", "consentgate.report.driver"):
        logging.getLogger(name).setLevel(logging.ERROR)
    known, _ = pinned(config, policy)
    configured = ConfiguredPolicy(policy, None if known is None else known.hash[:12])

    async def work() -> None:
        await Report(config, configured, config.http.port if port is None else port).run()

    asyncio.run(work())

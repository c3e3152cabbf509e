"""Replaces identifiers in texts by placeholders: pure, synchronous, without I/O.

Its libraries come with the extra `[redact]`; without them the package cannot be imported.
"""

from importlib.util import find_spec

from consentgate.errors import ConfigError

_missing = [name for name in ("phonenumbers", "stdnum") if find_spec(name) is None]
if _missing:
    raise ConfigError(
        f"policy: a rule redacts, and {' and '.join(_missing)} is not installed: run "
        'pip install "consentgate[redact]", or take `redact` out of the policy'
    )

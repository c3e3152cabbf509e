"""The presets, and the way from a policy's name or path to the policy."""

from importlib import resources
from pathlib import Path

from consentgate.core.document import did_you_mean, shown
from consentgate.core.policy import Policy
from consentgate.core.policyfile import parse_policy
from consentgate.errors import ConfigError, PolicyError

_PRESETS = resources.files(__name__)
_SUFFIX = ".yaml"


def preset_names() -> tuple[str, ...]:
    """The names of the presets, sorted."""
    files = (file.name for file in _PRESETS.iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)))


def load_policy(name_or_path: str) -> Policy:
    """The preset of this name, or else the policy in the file at this path.

    Raises:
        PolicyError: if there is neither, or if the policy has errors.
    """
    text, file = read_policy(name_or_path)
    return parse_policy(text, file)


def read_policy(name_or_path: str) -> tuple[str, str]:
    """The text of a policy, and the name of its file for messages.

    A preset's name comes first; write `./linkedin` for a file of that name.

    Raises:
        PolicyError: if there is neither a preset nor a readable file of this name.
    """
    presets = preset_names()
    try:
        if name_or_path in presets:
            file = f"{name_or_path}{_SUFFIX}"
            return (_PRESETS / file).read_text("utf-8"), f"consentgate/policies/{file}"
        return Path(name_or_path).read_text("utf-8"), name_or_path
    except UnicodeDecodeError as error:
        problem = f"the policy {shown(name_or_path)} is not UTF-8 at byte {error.start}"
        raise PolicyError(f"{problem}, save it as UTF-8 text") from None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        problem = f"the policy {shown(name_or_path)} is no preset and no readable file ({cause})"
        hint = did_you_mean(name_or_path, presets) or "give a path or a preset's name"
        names = ", ".join(presets)
        raise PolicyError(f"{problem}, {hint} (presets: {names})") from None


def refuse_unsupported(policy: Policy) -> None:
    """Refuse a policy that asks for what this version cannot do; never ignore it.

    Raises:
        ConfigError: naming the rules.
    """
    lines = [str(rule.line) for rule in policy.rules if rule.transforms]
    if lines:
        raise ConfigError(
            f"policy {policy.name}: this version cannot select fields, redact or pseudonymize, "
            f"as the rules in line {', '.join(lines)} ask for"
        )

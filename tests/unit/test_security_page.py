"""The page on security: its recipes load, and what it grants can be read."""

import re
from pathlib import Path

import pytest
import yaml

from certificates import Authority
from consentgate.config import load_config
from consentgate.kafka.settings import kafka_settings
from secured import documented_acls

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
RECIPES = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_makes_settings(recipe: str, tmp_path: Path) -> None:
    certificate, _ = Authority.make().give(tmp_path, "client", password="secret")
    (tmp_path / "ca.pem").write_bytes(certificate.read_bytes())
    path = tmp_path / "consentgate.yaml"
    path.write_text(recipe.replace("/etc/kafka", str(tmp_path)), "utf-8")
    variables = dict.fromkeys(re.findall(r"\$\{([A-Z_]+)\}", recipe), "secret")
    config = load_config(str(path), variables)
    assert config.kafka.keys() == yaml.safe_load(recipe)["kafka"].keys()
    assert "ssl_context" in kafka_settings(config.kafka).client


def test_there_are_three_recipes() -> None:
    assert len(RECIPES) == 3


def test_no_command_is_granted_the_same_right_twice() -> None:
    for command, acls in documented_acls().items():
        assert len(set(acls)) == len(acls) > 0, command

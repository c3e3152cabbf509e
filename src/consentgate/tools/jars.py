"""The jars of the embedded Kafka: a lock file, a cache, and nothing that was not verified.

`kafka-jars.lock` names every jar with its SHA-256. The jars are fetched once from the public Maven
repository and kept in the user's cache directory; their digests are checked at every start, so a
damaged, truncated or exchanged file is never run.

`python -m consentgate.tools.jars 4.3.1` makes the lock file anew, for that version of Kafka.
"""

import fcntl
import hashlib
import os
import pwd
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consentgate.errors import BrokerError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

LOCK_PATH = Path(__file__).with_name("kafka-jars.lock")
EXTRA_MISSING = "the embedded broker needs more packages: pip install 'consentgate[broker]'"

_KAFKA = "org.apache.kafka:kafka_2.13"
_LOG4J_CORE = "org.apache.logging.log4j:log4j-core"
# Kafka's published dependencies lack the bridge from its logging interface to log4j.
_LOG4J_BRIDGE = "org.apache.logging.log4j:log4j-slf4j-impl"

_CONNECTIONS = 8
_REQUEST_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock file.

    `sha256` is the digest in lower-case hexadecimal digits.
    """

    group: str
    artifact: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    def path_in(self, cache: Path) -> Path:
        """Where the jar lies in a Maven repository's layout under `cache`."""
        folder = cache.joinpath(*self.group.split("."), self.artifact, self.version)
        return folder / f"{self.artifact}-{self.version}.jar"

    def is_intact_in(self, cache: Path) -> bool:
        """Whether the cache holds this jar with the digest that the lock file demands."""
        try:
            return _sha256(self.path_in(cache)) == self.sha256
        except FileNotFoundError:
            return False


def read_lock() -> tuple[Jar, ...]:
    """Return the jars of the lock file that ships with this package, in class path order."""
    lines = LOCK_PATH.read_text(encoding="ascii").splitlines()
    return tuple(_parse_line(line) for line in lines if not line.startswith("#"))


def kafka_version(jars: Iterable[Jar]) -> str:
    """Return the version of Apache Kafka among `jars`."""
    return next(jar.version for jar in jars if f"{jar.group}:{jar.artifact}" == _KAFKA)


def cache_directory() -> Path:
    """Return where the jars are kept, following the platform's convention.

    Raises `BrokerError` if there is neither `XDG_CACHE_HOME` nor a home directory.
    """
    # The XDG specification says that a relative path is to be ignored.
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        return Path(configured, "consentgate", "kafka")
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise BrokerError(
            "no place to keep the broker's jars: this user has no home directory; "
            "set XDG_CACHE_HOME to an absolute path"
        ) from None
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path(home, caches, "consentgate", "kafka")


def fetch(jars: Sequence[Jar], cache: Path) -> list[Path]:
    """Return the paths of `jars` under `cache`, after fetching those that are missing or damaged.

    Any number of processes may do this at once; one of them fetches and the others wait for it.

    Raises `BrokerError` if a jar cannot be fetched, if what came has another digest than the lock
    file demands, or if the cache cannot be used.
    """
    try:
        if not all(jar.is_intact_in(cache) for jar in jars):
            with _locked(cache):
                # Another process may have fetched them in the meantime.
                if missing := [jar for jar in jars if not jar.is_intact_in(cache)]:
                    _download(missing, cache)
    except OSError as error:
        raise BrokerError(
            f"cannot use the jar cache {cache}: {error}; make it writable, "
            "or set XDG_CACHE_HOME to a directory that is"
        ) from error
    return [jar.path_in(cache) for jar in jars]


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the cache for this process alone; the system lets go of it if the process dies."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(jars: Sequence[Jar], cache: Path) -> None:
    context = _maven(cache)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(_CONNECTIONS) as pool,
    ):
        task = progress.add_task("Fetching Apache Kafka (once)", total=len(jars))
        downloads = [pool.submit(_download_one, context, jar) for jar in jars]
        try:
            for download in as_completed(downloads):
                download.result()
                progress.advance(task)
        except BaseException:
            # Without a network every further download would only fail as slowly as the first.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _download_one(context: "MavenContext", jar: Jar) -> None:
    path = jar.path_in(context.repo_cache)
    # Whatever lies there is damaged or half written, and would be taken for the jar.
    path.unlink(missing_ok=True)
    try:
        context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    except (OSError, RuntimeError) as error:  # An OSError is also what `requests` raises.
        path.unlink(missing_ok=True)
        raise BrokerError(
            f"cannot fetch {jar}: {error}. The broker's jars are fetched once from the public "
            f"Maven repository and kept in {context.repo_cache}: run this again with network "
            "access (what has been fetched is kept), or copy that directory from a machine "
            "that has it"
        ) from error
    if (found := _sha256(path)) != jar.sha256:
        path.unlink()
        raise BrokerError(
            f"refused {jar}: the file that was fetched has the SHA-256 {found}, the lock file "
            f"demands {jar.sha256}; it was deleted again. Something between here and the "
            "repository changes files"
        )


def _maven(cache: Path) -> "MavenContext":
    # Imported late: not needed once the cache is filled.
    try:
        from jgo.maven import MavenContext  # noqa: PLC0415
    except ImportError as error:
        raise BrokerError(EXTRA_MISSING) from error
    return MavenContext(repo_cache=cache, timeout=_REQUEST_TIMEOUT_SECONDS)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_line(line: str) -> Jar:
    coordinate, sha256 = line.split()
    group, artifact, version = coordinate.split(":")
    return Jar(group, artifact, version, sha256)


def _lock_text(version: str) -> str:
    """Resolve Kafka's run-time dependencies and return the lock file's text."""
    # A fresh directory, so that every digest is of what the repository has now.
    with tempfile.TemporaryDirectory() as cache:
        context = _maven(Path(cache))
        kafka = _runtime_versions(context, _KAFKA, version)
        bridge = _runtime_versions(context, _LOG4J_BRIDGE, kafka[_LOG4J_CORE])
        if conflicts := [name for name in kafka.keys() & bridge if kafka[name] != bridge[name]]:
            raise BrokerError(f"Kafka and its log bridge disagree on {', '.join(conflicts)}")
        jars = [_lock_one(context, *item) for item in sorted((kafka | bridge).items())]
    return "".join(
        [
            f"# Apache Kafka {version} and all it needs at run time, with a log bridge.\n",
            "# One jar a line: group:artifact:version sha256\n",
            f"# Made by `python -m consentgate.tools.jars {version}`; do not edit.\n",
            *(f"{jar} {jar.sha256}\n" for jar in jars),
        ]
    )


def _runtime_versions(context: "MavenContext", name: str, version: str) -> dict[str, str]:
    """Return the version of each `group:artifact` that `name` needs at run time, and its own.

    Each root is resolved alone: two at once may pull each other's dependencies to older versions.
    """
    from jgo.maven import PythonResolver  # noqa: PLC0415

    root = context.create_dependency(f"{name}:{version}")
    _, dependencies = PythonResolver().resolve([root])
    versions = {f"{d.groupId}:{d.artifactId}": d.version for d in dependencies}
    return {name: version} | versions


def _lock_one(context: "MavenContext", name: str, version: str) -> Jar:
    group, artifact = name.split(":")
    path = context.project(group, artifact).at_version(version).artifact().resolve()
    return Jar(group, artifact, version, _sha256(path))


def main() -> None:
    """Make the lock file anew for the version of Kafka that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m consentgate.tools.jars VERSION")
    LOCK_PATH.write_text(_lock_text(sys.argv[1]), encoding="ascii")


if __name__ == "__main__":
    main()

"""Files for TLS: which one is at fault, and what becomes of connections when they are replaced."""

import asyncio
import datetime
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from certificates import Authority
from consentgate.errors import ConfigError
from consentgate.kafka.tls import ReloadingContext, TlsFiles

SECRET = "hunter2"


def refused(files: TlsFiles) -> str:
    with pytest.raises(ConfigError) as raised:
        files.load()
    assert SECRET not in str(raised.value)
    return str(raised.value)


def test_a_key_in_the_certificate_s_file_is_found_there(tmp_path: Path) -> None:
    certificate, key = Authority.make().give(tmp_path, "client")
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    TlsFiles(certificate=str(certificate)).load()


def test_a_key_with_a_password_is_opened(tmp_path: Path) -> None:
    certificate, key = map(str, Authority.make().give(tmp_path, "client", password=SECRET))
    TlsFiles(certificate=certificate, key=key, password=SECRET).load()
    wrong = refused(TlsFiles(certificate=certificate, key=key, password="other"))
    assert wrong.startswith("kafka.ssl.key.password: cannot be loaded: it is not the password")


def test_a_key_with_a_password_and_none_given_asks_nobody(tmp_path: Path) -> None:
    # OpenSSL would ask at the terminal, and wait.
    certificate, key = map(str, Authority.make().give(tmp_path, "client", password=SECRET))
    message = refused(TlsFiles(certificate=certificate, key=key))
    assert message.startswith("kafka.ssl.key.password: ")


def test_a_password_that_is_not_needed_does_no_harm(tmp_path: Path) -> None:
    certificate, key = map(str, Authority.make().give(tmp_path, "client"))
    TlsFiles(certificate=certificate, key=key, password=SECRET).load()


def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    authority = Authority.make()
    certificate, _ = authority.give(tmp_path, "client")
    _, key = authority.give(tmp_path, "other")
    message = refused(TlsFiles(certificate=str(certificate), key=str(key)))
    assert message == (
        "kafka.ssl.key.location: cannot be loaded: the key is not that of the certificate"
    )


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    certificate, key = Authority.make().give(tmp_path, "client")
    key.unlink()
    for files, setting in (
        (TlsFiles(str(key)), "ssl.ca.location"),
        (TlsFiles(str(key), "https.ca.location"), "https.ca.location"),
        (TlsFiles(certificate=str(key)), "ssl.certificate.location"),
        (TlsFiles(certificate=str(certificate), key=str(key)), "ssl.key.location"),
    ):
        assert refused(files) == f"kafka.{setting}: cannot be loaded: No such file or directory"


def test_the_password_is_not_shown() -> None:
    assert SECRET not in repr(TlsFiles(password=SECRET))


def test_it_is_told_when_the_certificate_has_expired(tmp_path: Path) -> None:
    authority, ago = Authority.make(), datetime.timedelta(hours=-1)
    expired, _ = authority.give(tmp_path, "old", lives=ago)
    fresh, _ = authority.give(tmp_path, "new")
    at = TlsFiles(certificate=str(expired)).expired_at()
    assert at is not None
    assert abs(at - ago - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert TlsFiles(certificate=str(fresh)).expired_at() is None
    assert TlsFiles(certificate=str(tmp_path / "none")).expired_at() is None


# Files that are replaced.


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that notes who its clients say they are."""
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("peercert")
        seen.append(certificate["subject"][0][0][1])
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


async def hello(port: int, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert await reader.read() == b"hello"
    writer.close()


class Both:
    """A server and a client that trust one authority, and the client's files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.verify_mode = ssl.CERT_REQUIRED
        self.trusted = directory / "ca.pem"
        self.authority = self.renew(Authority.make("first"))
        self.certificate, self.key = self.authority.give(directory, "client")
        files = TlsFiles(str(self.trusted), certificate=str(self.certificate), key=str(self.key))
        self.client = ReloadingContext(files)

    def renew(self, authority: Authority) -> Authority:
        """Have the server use and trust this authority; the client is to trust it."""
        self.server.load_cert_chain(*authority.give(self.directory, "server", hosts=("127.0.0.1",)))
        self.server.load_verify_locations(cadata=authority.pem.decode())
        self.trusted.write_bytes(authority.pem)
        self.authority = authority
        return authority

    def rename(self, name: str) -> None:
        """Give the client another certificate, in the same files."""
        for path, pem in zip((self.certificate, self.key), self.authority.sign(name), strict=True):
            path.write_bytes(pem)


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


async def test_a_new_certificate_serves_the_next_connection(both: Both) -> None:
    async with serving(both.server) as (port, seen):
        await hello(port, both.client)
        both.rename("renewed")
        await hello(port, both.client)
    assert seen == ["client", "renewed"]


async def test_authorities_are_replaced_and_not_added(both: Both) -> None:
    async with serving(both.server) as (port, _):
        await hello(port, both.client)
        both.trusted.write_bytes(Authority.make("second").pem)
        with pytest.raises(ssl.SSLCertVerificationError):
            await hello(port, both.client)
        both.renew(Authority.make("third"))
        both.rename("client")
        await hello(port, both.client)


@pytest.mark.parametrize("spoilt", ["certificate", "key", "trusted"])
async def test_a_broken_file_leaves_the_last_good_ones_in_use(
    both: Both, spoilt: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = getattr(both, spoilt)
    good = path.read_bytes()
    async with serving(both.server) as (port, seen):
        for content in (good[:200], b"", None):
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            caplog.clear()
            # Said once, however often connections are made.
            await hello(port, both.client)
            await hello(port, both.client)
            (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
            assert "with the files as they were before" in warning.message
        path.write_bytes(good)
        both.rename("well again")
        await hello(port, both.client)
    assert seen[-1] == "well again"


async def test_a_certificate_without_its_key_yet_leaves_the_last_good_ones_in_use(
    both: Both,
) -> None:
    async with serving(both.server) as (port, seen):
        certificate, key = both.authority.sign("renewed")
        both.certificate.write_bytes(certificate)
        await hello(port, both.client)
        both.key.write_bytes(key)
        await hello(port, both.client)
    assert seen == ["client", "renewed"]


async def test_a_file_that_is_refused_is_tried_again(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file is as it was, so far as can be seen: what was refused was read a moment too early.
    async with serving(both.server) as (port, seen):
        both.rename("renewed")
        with monkeypatch.context() as early:
            early.setattr(TlsFiles, "load", refuse)
            await hello(port, both.client)
        await hello(port, both.client)
    assert seen == ["client", "renewed"]


def refuse(_: TlsFiles) -> ssl.SSLContext:
    raise ConfigError("half written")


async def test_files_behind_a_link_are_seen_to_be_replaced(both: Both, tmp_path: Path) -> None:
    # As Kubernetes does with secrets: the directory behind a link changes.
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for end, pem in zip(("pem", "key"), both.authority.sign(name), strict=True):
            path = tmp_path / name / f"client.{end}"
            path.write_bytes(pem.ljust(2_000, b"\n"))
            # Not by its time either, which a copy may keep.
            os.utime(path, ns=(0, 0))
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "one")
    context = ReloadingContext(
        TlsFiles(str(both.trusted), certificate=f"{link}/client.pem", key=f"{link}/client.key")
    )
    async with serving(both.server) as (port, seen):
        await hello(port, context)
        link.unlink()
        link.symlink_to(tmp_path / "two")
        await hello(port, context)
    assert seen == ["one", "two"]

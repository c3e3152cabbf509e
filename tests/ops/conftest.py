"""What the tests of the image and of Compose share: the image's environment, built once."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from image import Image


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    directory = Path(tempfile.mkdtemp(prefix="consentgate-image-"))
    # The image's user has to find its way in.
    directory.chmod(0o755)
    try:
        built = Image(directory)
        built.build()
        yield built
    finally:
        shutil.rmtree(directory)

"""Consent enforcement between two Kafka topics: only eligible records go on, exactly once."""

from importlib.metadata import version

__version__ = version("consentgate")

"""The part of the command line that the benchmarks have in common."""

import argparse
from collections.abc import Mapping


def parsed(
    parser: argparse.ArgumentParser, full: Mapping[str, float], quick: Mapping[str, float]
) -> argparse.Namespace:
    """What was given, with the sizes of a full run, or of a quick one, where none was."""
    parser.add_argument("--quick", action="store_true", help="a smoke test; no figures to be used")
    args = parser.parse_args()
    for name, value in (quick if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args

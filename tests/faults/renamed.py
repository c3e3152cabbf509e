"""Runs the command line as if it were of another version.

python renamed.py VERSION run -c ...
"""

import sys

import consentgate

consentgate.__version__ = sys.argv.pop(1)

from consentgate.cli import main  # noqa: E402

if __name__ == "__main__":
    main()

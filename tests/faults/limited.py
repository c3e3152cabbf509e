"""Runs the command line where no file may become larger than so many bytes, as on a full disk.

python limited.py BYTES run -c ...
"""

import resource
import sys

from consentgate.cli import main

if __name__ == "__main__":
    bytes_max = int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
    main()

"""Runs the command line under a client id of its own, and with steps that are given up sooner.

    python impatient.py CLIENT_ID STEP_SECONDS run -c ...

By the client id a proxy tells the workers apart.
"""

import os
import sys

from consentgate.cli import main
from consentgate.core.partition import Pause, Retire
from consentgate.kafka import transport

if __name__ == "__main__":
    client_id, step_seconds = sys.argv.pop(1), sys.argv.pop(1)
    os.environ["CONSENTGATE_KAFKA__CLIENT_ID"] = client_id
    # These have bounds of their own, and nothing that may be given up.
    transport._SECONDS_MAX |= dict.fromkeys((Pause, Retire), transport.STEP_SECONDS_MAX)
    transport.STEP_SECONDS_MAX = float(step_seconds)
    main()

"""`python -m peers.abreast NUMBER COMMAND...`: a command several times at once, until SIGTERM."""

import os
import signal
import subprocess
import sys


def main() -> None:
    """Start them, and end them all with the first that ends, which none is to do by itself."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    number, *command = sys.argv[1:]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.extend(subprocess.Popen(command) for _ in range(int(number)))
        os.wait()
        sys.exit("one of them has ended by itself")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    main()

"""`python -m consentgate`."""

from consentgate.cli import main

main()

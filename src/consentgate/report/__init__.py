"""The transparency report: what the ledger and the retractions come to, window by window."""

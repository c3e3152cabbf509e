"""How often Python looks for garbage, for processes that hold millions of subjects."""

import gc

THRESHOLDS = (100_000, 20, 100)
"""Containers made and not freed before a collection; then, collections before a deeper one."""


def collect_garbage_rarely() -> None:
    """Keep the collector from walking through millions of subjects after every few records.

    A batch makes tens of thousands of containers and frees them by their counts; what is left to
    the collector are a few cycles of the event loop's.
    """
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)

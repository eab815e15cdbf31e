"""A worker process, which has no life of its own: it ends when its main process does, also when that is killed."""

from __future__ import annotations

import os
import threading
import time

_SECONDS_BETWEEN_LOOKS = 1


def end_with(parent: int) -> None:
    """Watch the process with the id ``parent`` from now on, in a thread of this one, and end without a word once it is gone.

    A worker would otherwise go on, or wait for ever for what comes next; what it writes must be whole or not there, as with any kill.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)

"""The end of the process, and its forks: one drain with one deadline; a child begins empty."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Protocol

__all__ = ["drain_all", "install_signal_handlers", "known", "register"]

log = logging.getLogger("rambla")


class Stoppable(Protocol):
    """What ends with the process."""

    @property
    def started(self) -> bool: ...
    @property
    def grace(self) -> float: ...
    def drain_at_exit(self) -> None: ...
    def orphan(self) -> None: ...


_known: weakref.WeakSet[Any] = weakref.WeakSet()
_finalizers: set[int] = set()


def known() -> list[Any]:
    """The supervisors of this process."""
    return list(_known)


def register(supervisor: Stoppable) -> None:
    """Have a started supervisor drained at exit, also in a child of ``multiprocessing``, which skips ``atexit``."""
    _known.add(supervisor)
    # Only a process that multiprocessing made has to be told apart, and it has the module loaded.
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or os.getpid() in _finalizers:
        return
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        _finalizers.add(os.getpid())
        util.Finalize(None, drain_all, exitpriority=10)


def drain_all() -> None:
    """Drain every started supervisor, at the same time, each within its own ``shutdown_timeout``. Never raises."""
    started = [s for s in known() if s.started]
    if len(started) == 1:
        _drain(started[0])
        return
    _together([_drainer(s) for s in started])


def _drainer(supervisor: Stoppable) -> Callable[[], None]:
    return lambda: _drain(supervisor)


def _drain(supervisor: Stoppable) -> None:
    try:
        supervisor.drain_at_exit()
    except BaseException:
        log.exception("draining at exit failed")


def _together(calls: Iterable[Callable[[], None]]) -> None:
    threads = []
    for call in calls:
        thread = threading.Thread(target=call, daemon=True, name="rambla-exit")
        try:
            thread.start()
            threads.append(thread)
        except RuntimeError:  # too late for new threads: one after the other then
            call()
    for thread in threads:
        thread.join()


def install_signal_handlers(signals: Iterable[int] = (signal.SIGTERM,)) -> None:
    """Have SIGTERM (or ``signals``) end the process as an exit does: drained, with a deadline. From the main thread only.

    The handler that was there is called after the drain has been asked for; when it was the default, the process exits with
    status 128 + the signal's number. Calling it twice changes nothing. Raises ValueError on another thread.
    """
    for number in signals:
        before = signal.getsignal(number)
        if getattr(before, "rambla", False):
            continue
        signal.signal(number, _chained(before))


def _chained(before: Any) -> Callable[[int, FrameType | None], None]:
    def handler(number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_IGN:
            return
        # No lock is taken here: the main thread may hold any. It unwinds, and the exit drains.
        sys.exit(128 + number)

    handler.rambla = True  # type: ignore[attr-defined]
    return handler


def _after_fork_in_child() -> None:
    _finalizers.clear()
    for supervisor in known():
        supervisor.orphan()


os.register_at_fork(after_in_child=_after_fork_in_child)

"""The worker threads of one (service, channel): they drain its queue in batches, and park when it is empty.

A worker is not woken per message. At most one worker searches at a time, and whoever takes a batch wakes the next while work
remains. While no client can be made, one worker probes and the others rest.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from rambla import fates
from rambla.breaker import Breaker
from rambla.clients import Clients
from rambla.delivery import Delivery
from rambla.errors import RamblaError
from rambla.executor import Executor
from rambla.fates import NEVER, Verdict, Worker
from rambla.handlers import Spot, Traits
from rambla.ledger import Ledger, own
from rambla.outcome import Error, show
from rambla.settings import PoolSettings
from rambla.timer import Timer
from rambla.treatment import Treatment

__all__ = ["Pool"]

log = logging.getLogger("rambla")

# The design's promise: while connecting fails it is tried again within a second at most.
LONGEST_PAUSE = 1.0


@attrs.frozen
class Leftover:
    """What an abandoned worker had in its hands, for another to settle. No verdicts: it hung in the handler."""

    batch: Sequence[Delivery]
    verdicts: Sequence[Verdict]
    index: int
    quiet: bool


class Pool(Ledger):
    """A bounded queue and its workers.

    `accept` and what `Ledger` offers may be called from any thread; ``_run`` and what it calls are the workers'.
    """

    def __init__(
        self,
        traits: Traits,
        spot: Spot,
        settings: PoolSettings,
        treatment: Treatment,
        timer: Timer,
        breaker: Breaker | None = None,
        dead_letter: Callable[[Delivery, str], None] | None = None,
    ) -> None:
        super().__init__(spot.channel, spot.service, settings, timer)
        self.traits = traits
        self.spot = spot
        self.treatment = treatment
        self.breaker = breaker
        self.dead_letter = dead_letter
        self.check = traits.check
        self.batch = (settings.batch or traits.batch) if traits.handle_batch is not None else 1
        self.threads = settings.count + settings.max_overflow
        self.clients = Clients(traits, spot.connection)
        self._executor = Executor(self.threads, f"rambla-{spot.channel}")
        self._workers: set[Worker] = set()
        self._gone = 0  # abandoned workers that have not come back
        self._idle: list[Worker] = []
        self._searcher: Worker | None = None
        self._connecting = 0
        self._prober: Worker | None = None  # tries again to connect, or waits for the breaker
        self._pause = 0.05
        self._leftovers: deque[Leftover] = deque()
        self._watch_at = NEVER
        if breaker is not None:
            breaker.listen(self.nudge)

    # Publishing.

    def accept(self, delivery: Delivery, deadline_after: float | None = None) -> None:
        """Take one delivery. The short way, when there is room and the pool is warm; else as `reserve`, raising what it raises."""
        with self.lock:
            if self._held < self._bound:
                self._held += 1
                self._accepted += 1
                self._queue.append(delivery)
                if self._searcher is None and (self._idle or len(self._workers) < self.threads):
                    self._wake()
                return
        policy = self.settings.when_full
        patience = self.settings.publish_timeout if deadline_after is None else deadline_after
        dropped = self.reserve([delivery], time.monotonic() + patience, policy)
        self.enqueue([] if dropped else [delivery], dropped)

    def _staff(self) -> None:
        if not self._workers:
            self._start_worker()
        if self._refusal is None and self.settings.queue_bytes is None:
            self._bound = self.settings.queue_size

    def _wake(self) -> None:
        waiting = len(self._queue)
        if self._searcher is not None or not (waiting or self._leftovers):
            return
        if waiting <= self._connecting * self.batch and not self._leftovers:
            return  # those who are connecting will take it
        idle = self._idle
        if self._prober is not None and not self._leftovers:
            # Without a client a worker could only rest; one that still has its own may work.
            idle = [w for w in idle if w.lease is not None and not w.lease.stale]
            if not idle or (self.breaker is not None and self.breaker.state != "closed"):
                return
        if idle:
            worker = idle[-1]
            self._idle.remove(worker)
            self._searcher = worker
            self._unpark(worker)
        elif len(self._workers) < self.threads and self._gone < self.threads and self._prober is None:
            try:
                self._start_worker()
            except RuntimeError as error:
                if not self._workers:
                    raise
                log.warning("%s: no further thread can be started: %s", self, error)

    def _start_worker(self) -> None:
        worker = Worker()
        previous, self._searcher = self._searcher, worker
        self._workers.add(worker)
        try:
            self._executor.submit(self._run, worker)
        except RuntimeError as error:
            self._workers.discard(worker)
            self._searcher = previous
            if self._workers:
                raise
            raise RamblaError(f"{self}: no worker thread can be started, nothing was accepted: {error}") from error

    def _unpark(self, worker: Worker) -> None:
        if worker.parked:
            worker.parked = False
            worker.gate.release()

    # The worker's loop.

    def _run(self, worker: Worker) -> None:
        own.pool, own.worker = self, worker
        worker.thread = threading.current_thread()
        try:
            while (work := self._next(worker)) is not None:
                if isinstance(work, Leftover):
                    fates.run_verdicts(self, worker, work.batch, work.verdicts, work.index, work.quiet)
                elif work and work[0].attempt == 0 or (work and self._expired(work[0])):
                    fates.expire(self, worker, work)
                elif work:
                    fates.run(self, worker, work)
                if worker.abandoned:
                    break
        except BaseException as error:  # a fault of our own: said aloud, its messages are not left hanging
            log.critical("%s: a worker failed: %s", self, show(error), exc_info=True)
        finally:
            self._leave(worker)

    def _next(self, worker: Worker) -> Sequence[Delivery] | Leftover | None:
        """What to do next: a batch, a leftover, or None to leave. Parks as long as there is nothing."""
        while not worker.abandoned:
            with self.lock:
                worker.batch, worker.verdicts, worker.deadline = (), None, NEVER
                if self._final:
                    return None
                if self._leftovers:
                    return self._take_leftover(worker)
                expired = self._take_expired(worker) if self._prober is worker else None
                if expired:
                    return expired
                step, pause = self._step(worker)
                if step == "work":
                    return self._cut(worker)
                if step == "park":
                    self._stop_searching(worker)
                    self._idle.append(worker)
                if step != "connect":
                    worker.parked = True
            if step == "connect":
                self._connect(worker)
            else:
                self._rest(worker, pause)
        return None

    def _step(self, worker: Worker) -> tuple[str, float | None]:
        """``work``, ``connect``, ``park`` until woken, or ``rest`` for some seconds; called with the lock held."""
        if not self._queue:
            if self._prober is worker:
                self._prober = None
            return "park", None
        other_probes = self._prober is not None and self._prober is not worker
        if self.clients.needed and (worker.lease is None or worker.lease.stale):
            if other_probes:
                return "park", None
            self._stop_searching(worker)
            self._connecting += 1
            worker.doing, worker.deadline = "connect", time.monotonic() + self.treatment.timeout + self.settings.grace
            self._watch_from(worker.deadline)
            if self._prober is None:
                self._wake()
            return "connect", None
        wait = self.breaker.admit(worker) if self.breaker is not None else 0.0
        if wait > 0:
            if other_probes:
                return "park", None
            self._stop_searching(worker)
            self._prober = worker
            return "rest", min(wait, LONGEST_PAUSE) if self._any_mortal() else wait
        if self.settings.linger and not worker.lingered and len(self._queue) < self.batch:
            worker.lingered = True
            return "rest", self.settings.linger
        if self._prober is worker:
            self._prober = None
        return "work", None

    def _cut(self, worker: Worker) -> Sequence[Delivery]:
        """Take a run of equal options off the queue; called with the lock held."""
        queue = self._queue
        first = queue.popleft()
        if first.treatment.ttl is not None and self._expired(first):
            if self.breaker is not None:
                self.breaker.release(worker)
            return self._hand(worker, [first], count=False)
        limit = self.batch if self.breaker is None or self.breaker.state == "closed" else 1
        batch = [first]
        if limit > 1 and not first.alone:
            options = first.treatment.options
            while queue and len(batch) < limit:
                treatment = queue[0].treatment
                if treatment.options is not options and treatment.options != options:
                    break
                if queue[0].alone or (treatment.ttl is not None and self._expired(queue[0])):
                    break
                batch.append(queue.popleft())
        return self._hand(worker, batch)

    def _hand(self, worker: Worker, batch: Sequence[Delivery], count: bool = True) -> Sequence[Delivery]:
        self._running += len(batch)
        worker.batch, worker.index, worker.lingered = batch, 0, False
        if count:
            for delivery in batch:
                delivery.attempt += 1
        worker.doing = "the handler" if count else "a callback"
        worker.deadline = deadline = time.monotonic() + batch[0].treatment.timeout + self.settings.grace
        if deadline < self._watch_at:
            self._watch_from(deadline)
        self._stop_searching(worker)
        if self._queue:
            self._wake()
        return batch

    def _take_leftover(self, worker: Worker) -> Leftover:
        leftover = self._leftovers.popleft()
        worker.batch, worker.verdicts, worker.index = leftover.batch, leftover.verdicts, leftover.index
        self._stop_searching(worker)
        self._wake()
        return leftover

    def _take_expired(self, worker: Worker) -> Sequence[Delivery] | None:
        expired = [d for d in self._queue if d.treatment.ttl is not None and self._expired(d)]
        if not expired:
            return None
        gone = set(map(id, expired))
        self._queue = deque(d for d in self._queue if id(d) not in gone)
        return self._hand(worker, expired, count=False)

    def _expired(self, delivery: Delivery) -> bool:
        ttl = delivery.treatment.ttl
        return ttl is not None and time.monotonic() >= delivery.accepted + ttl

    def _any_mortal(self) -> bool:
        return any(d.treatment.ttl is not None for d in self._queue)

    def _stop_searching(self, worker: Worker) -> None:
        if self._searcher is worker:
            self._searcher = None

    def _rest(self, worker: Worker, pause: float | None) -> None:
        if pause is None:
            worker.gate.acquire()
        elif not worker.gate.acquire(timeout=pause):
            with self.lock:
                unwoken, worker.parked = worker.parked, False
            if not unwoken:
                worker.gate.acquire()  # woken in the very moment: the release is ours to take
            return
        with self.lock:
            worker.parked = False

    # Clients.

    def _connect(self, worker: Worker) -> None:
        if worker.lease is not None:
            self.clients.give_back(worker.lease)
            worker.lease = None
        error: BaseException | None = None
        try:
            worker.lease = self.clients.take()
        except BaseException as raised:
            error = raised
        with self.lock:
            worker.deadline = NEVER
            if worker.abandoned:
                return  # _leave gives back what came too late
            self._connecting -= 1
            if error is None:
                self._reached(worker)
                return
            first = self._prober is None
            self._prober = self._prober or worker
            if self._prober is not worker:
                return
            pause = self._pause * random.uniform(0.5, 1.0)
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
            worker.parked = True
        level = logging.WARNING if first else logging.DEBUG
        log.log(level, "%s cannot connect and tries again, its messages wait: %s", self, show(error))
        self._rest(worker, pause)

    def _reached(self, worker: Worker) -> None:
        if self._prober is worker:
            log.info("%s is connected again", self)
            self._prober = None
        self._pause = 0.05
        self._wake()

    def ready(self, worker: Worker) -> bool:
        """Whether the worker has a client, a new one if must be; False when none can be made."""
        if not self.clients.needed or worker.lease is not None:
            return not worker.abandoned
        try:
            worker.lease = self.clients.take()
        except BaseException as error:
            log.warning("%s cannot connect; what was not tried waits: %s", self, show(error))
        return worker.lease is not None and not worker.abandoned

    def drop_client(self, worker: Worker) -> None:
        """Let go of a client that an exception came from: it is used by nobody again."""
        lease, worker.lease = worker.lease, None
        if lease is not None:
            self.clients.give_back(lease, broken=True)

    def renew_clients(self) -> None:
        """Have every worker make its client anew before its next message (a restarted external server)."""
        self.clients.expire()
        self.nudge()

    def nudge(self) -> None:
        """Let the worker that waits for a connection or for the breaker look again, now."""
        with self.lock:
            if self._prober is not None:
                self._unpark(self._prober)
            self._wake()

    # The watchdog. It runs on the timer's thread and calls no foreign code.

    def extend(self, worker: Worker, doing: str) -> None:
        """Give the worker's next foreign call its own time."""
        worker.doing = doing
        worker.deadline = time.monotonic() + self.treatment.timeout + self.settings.grace
        if worker.deadline < self._watch_at:
            with self.lock:
                self._watch_from(worker.deadline)

    def _watch_from(self, deadline: float) -> None:
        if deadline < self._watch_at:
            self._watch_at = deadline
            self._timer.at(deadline, self._watch)

    def _watch(self) -> None:
        reports = []
        with self.lock:
            self._watch_at = NEVER
            now = time.monotonic()
            for worker in [w for w in self._workers if w.deadline <= now]:
                reports.append(self._take_over(worker))
            soonest = min((w.deadline for w in self._workers), default=NEVER)
            if soonest < NEVER:
                self._watch_from(soonest)
            try:
                self._wake()
            except RamblaError as error:
                reports.append(str(error))
        for report in reports:
            log.error("%s", report)

    def _take_over(self, worker: Worker) -> str:
        """Abandon an overrun worker and leave what it held to another; returns the report, with its stack."""
        self.counts["overruns"] += 1
        self._dismiss(worker)
        if worker.batch:
            self._leftovers.append(self._leftover(worker))
        frame = sys._current_frames().get(worker.thread.ident or 0) if worker.thread else None
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(its thread has ended)\n"
        fate = "replaced" if self._gone < self.threads else f"not replaced: {self._gone} hang already"
        seconds = f"{self.treatment.timeout if not worker.batch else worker.batch[0].treatment.timeout:g}"
        return (
            f"{self}: {worker.doing or 'a call'} overran its timeout of {seconds} s and a grace of"
            f" {self.settings.grace:g} s with {len(worker.batch)} messages; the worker is {fate}. It stands at:\n{stack}"
        )

    def _leftover(self, worker: Worker) -> Leftover:
        if worker.verdicts is not None:
            return Leftover(worker.batch, worker.verdicts, worker.index, quiet=True)
        seconds = f"{worker.batch[0].treatment.timeout:g} s and a grace of {self.settings.grace:g} s"
        late = Error(TimeoutError(f"the call overran its timeout of {seconds}"), uncertain=True)
        return Leftover(worker.batch, [late] * len(worker.batch), 0, quiet=False)

    def _dismiss(self, worker: Worker) -> None:
        worker.abandoned = True
        worker.deadline = NEVER
        self._workers.discard(worker)
        self._gone += 1
        if worker in self._idle:
            self._idle.remove(worker)
        self._stop_searching(worker)
        if worker.doing == "connect" and not worker.batch:
            self._connecting -= 1
        if self._prober is worker:
            self._prober = None
        if self.breaker is not None:
            self._timer.at(0.0, self.breaker.release, worker)  # its listeners take other pools' locks: not under ours
        self._executor.abandon(worker.thread)

    # The end.

    def _take_over_all(self, spare: Any) -> list[Delivery]:
        held = [d for leftover in self._leftovers for d in leftover.batch[leftover.index :]]
        self._leftovers.clear()
        for worker in list(self._workers):
            if worker is not spare and worker.batch:
                held += [d for d in worker.batch if d.status is None and d not in self._delayed]
                self._dismiss(worker)
            else:
                self._unpark(worker)
        return held

    def _leave(self, worker: Worker) -> None:
        with self.lock:
            if worker.abandoned:
                self._gone -= 1
            self._workers.discard(worker)
            self._stop_searching(worker)
            if self._prober is worker:
                self._prober = None
            lease, worker.lease = worker.lease, None
            if not self._final:
                self._wake()
        own.pool = own.worker = None
        if lease is not None:
            self.clients.give_back(lease, broken=worker.abandoned)

    def my_worker(self) -> Worker | None:
        """The calling thread's worker, when it is one of this pool's."""
        return own.worker if getattr(own, "pool", None) is self else None

    def shutdown(self, deadline: float) -> bool:
        """Wait for the threads to end, until ``deadline`` (monotonic); those that hang are left behind."""
        return self._executor.shutdown(wait=True, timeout=max(0.0, deadline - time.monotonic()))

    def orphan(self) -> None:
        """In a forked child: the queue, the threads and the connections are the parent's; nothing here is used again."""
        self.lock = threading.RLock()
        for worker in self._workers:
            worker.abandoned = True
            worker.lease = None
        self.clients.forget()

    def figures(self) -> dict[str, int]:
        """The counts of this moment, and how many threads there are."""
        with self.lock:
            return super().figures() | {"workers": len(self._workers), "hung": self._gone}

    def __repr__(self) -> str:
        f = self.figures()
        return (
            f"<Pool {self.channel!r} {f['workers']} threads | {f['running']} running, {f['waiting']} waiting |"
            f" {f['delivered']} delivered, {f['dead']} dead>"
        )

"""One batch, from worker to outcomes: call, judge, decide, tell, settle.

The fates. Every accepted delivery ends in exactly one outcome:

==========================================  ==============================  =======================================
happening                                   outcome                         callbacks
==========================================  ==============================  =======================================
the handler returns                         delivered                       ``on_success``
it fails, tries are left                    none yet, waits for its retry   ``on_failure``, resolution ``error``
it fails, no tries are left                 dead, ``exhausted``             ``on_failure``, ``fatal``; ``on_fatal``
it fails, and no retry can help             dead, ``permanent``             ``on_failure``, ``fatal``; ``on_fatal``
its ``ttl`` passed                          dead, ``expired``               ``on_failure``, ``fatal``; ``on_fatal``
``on_failure`` says STOP                    dead, ``stopped``               none more
a call overruns ``timeout`` and its grace   a failed attempt, uncertain     as any failure
no client can be made                       none, no try is counted         none
a callback raises                           unchanged                       contained, logged, counted
==========================================  ==============================  =======================================

What the pool itself ends: dropped (by ``when_full``), lost (a stop came before its turn, or while it waited for a retry;
uncertain when its handler was running).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import attrs

from rambla import telemetry
from rambla.breaker import Breaker
from rambla.clients import Lease
from rambla.delivery import Delivery
from rambla.errors import ChannelFull, InvalidMessage, PermanentError, RetryAfter
from rambla.handlers import Spot, State, Traits
from rambla.message import is_call
from rambla.outcome import RETRY, STOP, Decision, Error, Event, Ok, Retry, Status, show

__all__ = ["DELIVERED", "Fate", "Verdict", "Worker", "conclude", "decide", "expire", "judge", "run", "run_verdicts"]

log = logging.getLogger("rambla")

DELIVERED = Ok()
NEVER = float("inf")


class PutBack:
    """Not tried after all: back to the front of the queue, no try counted. ``after``: not before so many seconds."""

    __slots__ = ("after",)

    def __init__(self, after: float = 0.0) -> None:
        self.after = after


Verdict: TypeAlias = "Ok | Error | PutBack"


class Worker:
    """One thread of a pool and the batch in its hands.

    ``deadline`` is when the watchdog takes the batch over (`NEVER` while no foreign code runs). An ``abandoned`` worker was
    taken over: what it still says is ignored. All but ``index`` and ``verdicts`` change under the pool's lock.
    """

    __slots__ = (
        "abandoned", "batch", "deadline", "doing", "gate", "index", "lease", "lingered", "parked", "thread", "verdicts",
    )  # fmt: skip

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.thread: threading.Thread | None = None
        self.lease: Lease | None = None
        self.batch: Sequence[Delivery] = ()
        self.verdicts: Sequence[Verdict] | None = None
        self.index = 0
        self.deadline = NEVER
        self.doing = ""
        self.abandoned = False
        self.parked = False
        self.lingered = False


class Ground(Protocol):
    """What the fates need of the pool that they are decided in."""

    spot: Spot
    traits: Traits
    breaker: Breaker | None
    dead_letter: Callable[[Delivery, str], None] | None

    def ready(self, worker: Worker) -> bool: ...
    def drop_client(self, worker: Worker) -> None: ...
    def extend(self, worker: Worker, doing: str) -> None: ...
    def end(
        self, worker: Worker, delivery: Delivery, status: Status, *, value: Any = None, error: Any = None,
        reason: str | None = None, uncertain: bool = False,
    ) -> bool: ...  # fmt: skip
    def end_all(self, worker: Worker, deliveries: Sequence[Delivery], values: Sequence[Any]) -> bool: ...
    def delay(
        self, worker: Worker, delivery: Delivery, after: float, retries: int, *, uncertain: bool = False
    ) -> bool: ...
    def put_back(self, worker: Worker, delivery: Delivery, after: float) -> bool: ...
    def count(self, name: str) -> None: ...


@attrs.frozen
class Fate:
    """What becomes of a failed delivery: dead with a reason, or (``reason`` None) again after so many seconds."""

    reason: str | None
    after: float = 0.0
    retries: int = 0


def decide(
    verdict: Error,
    retries: int,
    decision: object,
    delay: Callable[[], float],
    *,
    expired: bool = False,
) -> Fate:
    """The fate of a failed attempt with ``retries`` tries left, and an ``on_failure`` that answered ``decision``.

    Pure but for the jitter of ``delay``, which is asked only when it counts. At the end (permanent, or no tries left) only
    ``Retry(retries=n)`` opens a new round, and what has expired stays so: no callback makes a message immortal by habit.
    """
    if decision is STOP:
        return Fate("stopped")
    if expired:
        return Fate("expired")
    end = "permanent" if verdict.permanent else "exhausted" if retries <= 0 else None
    left = retries
    after = verdict.after
    if isinstance(decision, Retry):
        if decision.retries is not None:
            left, end = decision.retries, None if decision.retries else end or "exhausted"
        if decision.after is not None:
            after = decision.after
    if end is not None:
        return Fate(end)
    return Fate(None, delay() if after is None else after, left - 1)


def judge(answer: object, permanent: tuple[type[BaseException], ...]) -> Verdict:
    """The verdict that a handler's answer is: failures are `Error`, False and exceptions; anything else is success."""
    if answer is None:
        return DELIVERED
    if isinstance(answer, (Ok, Error)):
        return answer
    if answer is False:
        return Error("the handler returned False")
    if answer is Error:
        return Error("the handler returned Error")
    if answer is Ok:
        return DELIVERED
    if isinstance(answer, BaseException):
        return blame(answer, permanent)
    return Ok(answer)


def blame(error: BaseException, permanent: tuple[type[BaseException], ...]) -> Error:
    """The verdict that an exception is. It may say itself whether it is ``uncertain``, by an attribute of that name."""
    if isinstance(error, RetryAfter):
        return Error(error, after=max(0.0, error.seconds))
    unanswered = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError, EOFError)
    return Error(
        error,
        permanent=isinstance(error, (PermanentError, InvalidMessage, *permanent)),
        uncertain=bool(getattr(error, "uncertain", isinstance(error, unanswered))),
    )


def run(pool: Ground, worker: Worker, batch: Sequence[Delivery]) -> None:
    """Send a batch, once, and settle what became of each of its deliveries."""
    verdicts = [_send_one(pool, worker, batch[0])] if len(batch) == 1 else _send(pool, worker, batch)
    if worker.abandoned:
        log.warning(
            "%s %r: the late answer of an overrun call is ignored (%d messages, first id=%s)",
            pool.spot.service, pool.spot.channel, len(batch), batch[0].id,
        )  # fmt: skip
        pool.count("late")
        return
    conclude(pool, worker, batch, verdicts)


def _send_one(pool: Ground, worker: Worker, delivery: Delivery) -> Verdict:
    traits = pool.traits
    lease = worker.lease
    client = None if lease is None else lease.client
    options = delivery.treatment.options
    try:
        if delivery.alone and is_call(delivery.message):
            destination = pool.spot.channel if traits.connect is None else client
            answer = delivery.message(source=traits.handler, destination=destination, options=options)
        else:
            answer = traits.handle_publish(delivery.message, options, State(pool.spot, (delivery,), client))
        verdict = DELIVERED if answer is None else judge(answer, traits.permanent)
    except BaseException as error:  # SystemExit too: a worker is not ended by what it runs
        verdict = _raised(pool, worker, error)
        delivery.alone = True  # were it poison, it would break its batch at each attempt
    if pool.breaker is not None:
        _record(pool.breaker, worker, (verdict,))
    return verdict


def _send(pool: Ground, worker: Worker, part: Sequence[Delivery]) -> list[Verdict]:
    """Send several in one call, or in halves of it until what raises stands alone."""
    if not pool.ready(worker):
        return [PutBack() for _ in part]
    if len(part) == 1:
        return [_send_one(pool, worker, part[0])]
    traits = pool.traits
    assert traits.handle_batch is not None
    client = None if worker.lease is None else worker.lease.client
    state = State(pool.spot, part, client)
    try:
        answers = traits.handle_batch([d.message for d in part], part[0].treatment.options, state)
        verdicts = _judge_all(answers, len(part), traits)
    except BaseException as error:
        verdict = _raised(pool, worker, error)
        if isinstance(error, (OSError, EOFError, RetryAfter, ChannelFull)):  # TimeoutError is an OSError
            verdicts = [verdict] * len(part)
        else:
            middle = len(part) // 2
            return _send(pool, worker, part[:middle]) + _send(pool, worker, part[middle:])
    if pool.breaker is not None:
        _record(pool.breaker, worker, verdicts)
    return verdicts


def _judge_all(answers: Any, count: int, traits: Traits) -> list[Verdict]:
    if isinstance(answers, (list, tuple)):
        if len(answers) == count:
            return [judge(answer, traits.permanent) for answer in answers]
        problem = f"handle_batch returned {len(answers)} verdicts for {count} messages"
        return [Error(problem, uncertain=True)] * count
    return [judge(answers, traits.permanent)] * count


def _raised(pool: Ground, worker: Worker, error: BaseException) -> Verdict:
    if isinstance(error, ChannelFull):
        # A handler that publishes found no room there: it is early, not wrong.
        return PutBack(after=0.1)
    if not isinstance(error, (PermanentError, RetryAfter, InvalidMessage)):
        pool.drop_client(worker)
    return blame(error, pool.traits.permanent)


def _record(breaker: Breaker, worker: Worker, verdicts: Sequence[Verdict]) -> None:
    if all(isinstance(v, PutBack) for v in verdicts):
        breaker.release(worker)
        return
    breaker.record(worker, ok=any(isinstance(v, Ok) or (isinstance(v, Error) and v.permanent) for v in verdicts))


def run_verdicts(
    pool: Ground, worker: Worker, batch: Sequence[Delivery], verdicts: Sequence[Verdict], index: int, quiet: bool
) -> None:
    """Go on where an overrun worker was left: from ``index`` on, without the callback that hung there if ``quiet``."""
    conclude(pool, worker, batch, verdicts, index, quiet=quiet)


def conclude(
    pool: Ground,
    worker: Worker,
    batch: Sequence[Delivery],
    verdicts: Sequence[Verdict],
    start: int = 0,
    *,
    quiet: bool = False,
) -> None:
    """Decide, tell and settle from ``start`` on; stops when the worker is taken over meanwhile."""
    treatment = batch[0].treatment
    if start == 0 and treatment.on_success is None and all(v.__class__ is Ok for v in verdicts):
        pool.end_all(worker, batch, [v.value for v in verdicts])  # type: ignore[union-attr]
        return
    worker.verdicts = verdicts
    for index in range(start, len(batch)):
        worker.index = index
        pool.extend(worker, "a callback")
        if not _settle(pool, worker, batch[index], verdicts[index], quiet and index == start):
            return


def _settle(pool: Ground, worker: Worker, delivery: Delivery, verdict: Verdict, quiet: bool) -> bool:
    if isinstance(verdict, PutBack):
        return pool.put_back(worker, delivery, verdict.after)
    if isinstance(verdict, Ok):
        if delivery.treatment.on_success is not None and not quiet:
            _ask(pool, delivery.treatment.on_success, delivery, verdict.value, "success")
        return pool.end(worker, delivery, Status.DELIVERED, value=verdict.value)
    return _fail(pool, worker, delivery, verdict, quiet)


def _fail(pool: Ground, worker: Worker, delivery: Delivery, verdict: Error, quiet: bool, expired: bool = False) -> bool:
    treatment = delivery.treatment
    fatal = expired or verdict.permanent or delivery.retries <= 0
    if not expired:
        pool.count("failed_attempts")
        if telemetry.wanted("attempt_failed"):
            telemetry.emit("attempt_failed", delivery, error=verdict.error, uncertain=verdict.uncertain or None)
    decision: object = None
    if treatment.on_failure is not None and not quiet:
        decision = _ask(pool, treatment.on_failure, delivery, verdict.error, "fatal" if fatal else "error")
        if not (decision is None or isinstance(decision, (Decision, Retry)) or decision is Retry):
            log.warning("on_failure of %r returned %.60r, which is no decision; the normal course is taken",
                        pool.spot.channel, decision)  # fmt: skip
    if fatal and decision is RETRY:
        decision = None
    fate = decide(verdict, delivery.retries, decision, lambda: treatment.backoff.delay(delivery.attempt), expired=expired)
    if fate.reason is None:
        return pool.delay(worker, delivery, fate.after, fate.retries, uncertain=verdict.uncertain)
    if fate.reason != "stopped":
        if not quiet:
            _on_fatal(pool, delivery, verdict.error)
        if pool.dead_letter is not None:
            pool.dead_letter(delivery, fate.reason)
    return pool.end(
        worker, delivery, Status.DEAD, error=verdict.error, reason=fate.reason, uncertain=verdict.uncertain
    )


def expire(pool: Ground, worker: Worker, deliveries: Sequence[Delivery]) -> None:
    """End deliveries whose ``ttl`` passed while they waited."""
    for index, delivery in enumerate(deliveries):
        worker.index = index
        pool.extend(worker, "a callback")
        error = f"its ttl of {delivery.treatment.ttl:g} s passed while it waited"
        if not _fail(pool, worker, delivery, Error(error), False, expired=True):
            return


def _ask(
    pool: Ground,
    callback: Callable[[Event], Any],
    delivery: Delivery,
    outcome: Any,
    resolution: Literal["success", "error", "fatal"],
) -> Any:
    event = Event(
        delivery.id, pool.spot.channel, pool.spot.service, outcome, resolution, delivery.payload, delivery.attempt,
        delivery.retries,
    )  # fmt: skip
    try:
        return callback(event)
    except BaseException as error:
        _contain(pool, f"the {resolution} callback", delivery, error)
        return None


def _on_fatal(pool: Ground, delivery: Delivery, error: Any) -> None:
    on_fatal = pool.traits.on_fatal or log_fatal
    try:
        on_fatal(delivery.id, error)
    except BaseException as raised:
        _contain(pool, "on_fatal", delivery, raised)


def log_fatal(id: str, error: Any) -> None:
    """What happens when tries are used up, or cannot help, and the handler has no ``on_fatal``: an error is logged."""
    log.error("message %s cannot be delivered and will not be tried again: %s", id, show(error))


def _contain(pool: Ground, what: str, delivery: Delivery, error: BaseException) -> None:
    pool.count("callback_errors")
    log.error(
        "%s of %s %r raised for %s, which changes nothing: %s", what, pool.spot.service, pool.spot.channel, delivery.id,
        show(error), exc_info=None if isinstance(error, ChannelFull) else _without_secrets(error),
    )  # fmt: skip


def _without_secrets(error: BaseException) -> Any:
    # A traceback prints the exception's own text: only one without a secret in it may be shown whole.
    return error if show(error).endswith(str(error)) else None


def now() -> float:
    """The monotonic clock, in seconds."""
    return time.monotonic()

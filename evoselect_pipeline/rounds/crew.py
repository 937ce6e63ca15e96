"""Workers of a Ray cluster that share a list of jobs, and outlive each other.

Ray is an extra: it is not imported before there is work.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from evoselect_pipeline.errors import ConfigError, DataError, EvoselectError

JOBS_IN_HAND = 2  # a worker's next job waits beside it; more would only fill memory
TRIES = 3
KNOCK_S = 10.0
START_S = 600.0  # a cluster may have to start machines, and these to fetch the model
_log = logging.getLogger("evoselect_pipeline")


def import_ray() -> Any:
    """Ray, which is an extra; it phones nobody unless the environment says so."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "engine: Ray is not installed; run pip install 'evoselect-pipeline[ray]', or set"
            " engine.kind to local"
        ) from None
    return ray


def connect(address: str | None) -> Any:
    """Join the cluster, once in a process; Ray leaves it when the process ends."""
    ray = import_ray()
    if ray.is_initialized():
        return ray
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(
            address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"engine.address {address!r}: no Ray cluster could be joined: {error}. Expected"
            " host:port of one that runs, `local`, or nothing"
        ) from error
    finally:
        # Ray puts a handler of its own in the place of the orchestrator's.
        if threading.current_thread() is threading.main_thread() and on_terminate is not None:
            signal.signal(signal.SIGTERM, on_terminate)
    return ray


def _knock(address: str | None) -> None:
    """Fail now where nobody listens; Ray would go on trying for ever."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


class Job(NamedTuple):
    """A call of a worker's method, and what it is about."""

    method: str
    args: tuple
    what: str


@dataclass
class _Worker:
    actor: Any
    loading: Any | None
    in_hand: dict[Any, int] = field(default_factory=dict)  # numbers of its jobs, oldest first


class Crew:
    """Workers that share a list of jobs; what a dead one had in hand goes to the others.

    Parameters
    ----------
    start : callable
        Starts an actor; returns it and the reference of a result that it has once it is loaded.
    size : int
        Workers at any time. The cluster may have room for fewer: those that fit do the work.
    needs : str
        What a worker needs of the cluster, for messages.
    """

    def __init__(self, start: Callable[[], tuple[Any, Any]], size: int, needs: str):
        self._ray = import_ray()
        self._start = start
        self._needs = needs
        self._failed_starts = 0
        self._workers = [_Worker(*start()) for _ in range(size)]

    def work(self, jobs: Sequence[Job]) -> Iterator[Any]:
        """Results of the jobs, as they are done.

        Raises
        ------
        DataError
            If workers die of a job again and again.
        ConfigError
            If no worker comes up.
        """
        waiting, deaths, left = deque(range(len(jobs))), Counter(), len(jobs)
        while left:
            self._hand_out(jobs, waiting, deaths)
            worker, ref = self._next_event()
            try:
                result = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, EvoselectError):
                    raise error.cause from None
                raise
            except self._ray.exceptions.RayError as error:
                lost = self._replace(worker, error)
                waiting.extendleft(reversed(lost))
                deaths.update(lost)
                _refuse_deadly(jobs, lost, deaths, error)
                continue
            if ref == worker.loading:
                worker.loading, self._failed_starts = None, 0
                continue
            del worker.in_hand[ref]
            left -= 1
            yield result

    def dismiss(self) -> None:
        """End all workers, so that the cluster has their room again."""
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers.clear()

    def _hand_out(self, jobs: Sequence[Job], waiting: deque[int], deaths: Counter[int]) -> None:
        for most in range(1, JOBS_IN_HAND + 1):  # one for each before anybody has two
            for worker in self._workers:
                if not waiting or worker.loading is not None or len(worker.in_hand) >= most:
                    continue
                # A job that was lost is tried alone: should it be deadly, no other is blamed.
                together = [waiting[0], *worker.in_hand.values()]
                if len(together) > 1 and any(deaths[number] for number in together):
                    continue
                number = waiting.popleft()
                ref = getattr(worker.actor, jobs[number].method).remote(*jobs[number].args)
                worker.in_hand[ref] = number

    def _next_event(self) -> tuple[_Worker, Any]:
        worker_of = {
            ref: worker
            for worker in self._workers
            for ref in ([worker.loading] if worker.loading is not None else worker.in_hand)
        }
        patience = None if any(w.loading is None for w in self._workers) else START_S
        ready, _ = self._ray.wait(list(worker_of), num_returns=1, timeout=patience)
        if not ready:
            raise ConfigError(
                f"engine: no worker came up within {START_S:g} s. Each needs {self._needs}; there"
                f" are {resources_told(self._ray.cluster_resources())}. Start more nodes, or lower"
                " engine.cpus_per_worker or engine.gpus_per_worker"
            )
        return worker_of[ready[0]], ready[0]

    def _replace(self, worker: _Worker, error: Exception) -> list[int]:
        """Start another worker in the place of a lost one; the jobs that it had in hand."""
        self._ray.kill(worker.actor)  # it may live on where only its answer was lost
        reason = str(error).strip()
        if worker.loading is not None:
            self._failed_starts += 1
            if self._failed_starts >= TRIES:
                raise ConfigError(
                    f"engine: {TRIES} workers in a row were lost while they loaded the proxy; is"
                    " this package installed on every node, and is there memory for the proxy?"
                    f" The last: {reason}"
                )
        _log.warning("a worker was lost, another takes its place: %s", reason.splitlines()[0])
        self._workers[self._workers.index(worker)] = _Worker(*self._start())
        return list(worker.in_hand.values())


def _refuse_deadly(
    jobs: Sequence[Job], lost: Sequence[int], deaths: Counter[int], error: Exception
) -> None:
    deadly = [jobs[number].what for number in lost if deaths[number] >= TRIES]
    if deadly:
        raise DataError(
            f"engine: {TRIES} workers were lost at {deadly[0]}; what is stored is kept."
            " Most often memory ran out: lower gradients.batch_tokens or model.max_length, or give"
            f" a worker more, then run again. The last: {str(error).strip()}"
        )


def resources_told(resources: Mapping[str, float]) -> str:
    """What a cluster has, for messages."""
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"

"""`bench adaptation` and `bench ablation`: arms compared end to end, cell by cell, on all cores.

A cell is one arm on one task in one world with one seed: a chain of rounds, and a file once it is
done. Cells that are there are not computed again, so a bench that was killed goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from evoselect_pipeline.bench.arms import Arm, changed
from evoselect_pipeline.config import LineConfig, PlaygroundTask
from evoselect_pipeline.core.records import digest
from evoselect_pipeline.errors import EvoselectError
from evoselect_pipeline.progress import progress
from evoselect_pipeline.rounds.candidates import load_generator
from evoselect_pipeline.rounds.data import load_task
from evoselect_pipeline.stores.artifacts import write_text_atomic

FILES_WORLD = "files"  # the world of rows that somebody else wrote
POLL_S = 1.0
SCHEDULING = {"engine", "schedule", "chain", "retention"}  # keys that decide no figure of a chain
PACKAGES = ("torch", "transformers", "peft", "POT", "numpy")


@dataclass(frozen=True)
class Cell:
    """One arm on one task in one world with one seed."""

    world: str
    task: str
    seed: int
    arm: Arm
    num_rounds: int
    rows: str | None = None  # hash of the rows, where they come from files

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the cell's figures, besides the code."""
        settings = self.arm.config.model_dump(mode="json", exclude=SCHEDULING)
        rows = () if self.rows is None else (self.rows,)
        return digest(settings, self.arm.is_oracle, self.arm.to_centroid, self.num_rounds, *rows)

    def path(self, folder: Path) -> Path:
        """Where the cell's record is; other settings are another file."""
        name = f"{self.world}-{self.task}-{self.arm.name}-{self.seed}-{self.fingerprint[:8]}.json"
        return folder / "cells" / name


def plan(
    config: LineConfig,
    worlds: Sequence[str],
    tasks: Sequence[str],
    seeds: Sequence[int],
    num_rounds: int,
    arms_of,
) -> list[list[Cell]]:
    """Blocks of cells that share their pools; all arms of one seed come before the next seed.

    `arms_of` a configuration gives its arms. A configuration over files has one world and task.
    """
    rows = None
    if not isinstance(config.task, PlaygroundTask):
        worlds, tasks = (FILES_WORLD,), (config.line,)
        rows = _files_digest(config, num_rounds)
    blocks = []
    for seed in seeds:
        for task in tasks:
            for world in worlds:
                keys = [f"seed={seed}"]
                if world != FILES_WORLD:
                    keys += [f"task.name={task}", f"generator.world={world}"]
                own = changed(config, keys)
                blocks.append(
                    [Cell(world, task, seed, arm, num_rounds, rows) for arm in arms_of(own)]
                )
    return blocks


def run_cells(blocks: Sequence[Sequence[Cell]], folder: Path, num_workers: int) -> None:
    """Compute the cells that are missing, one core for each block at a time.

    Raises
    ------
    EvoselectError
        What the first failing cell raised; finished cells are kept.
    BrokenProcessPool
        If a worker was killed from outside, as for want of memory.
    """
    cells = [cell for block in blocks for cell in block]
    missing = [[cell for cell in block if not cell.path(folder).is_file()] for block in blocks]
    missing = [block for block in missing if block]
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    # Read by numpy and torch when a worker imports them. One thread each: sums then do not depend
    # on how many cores there are, and neither do the rows that are chosen.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_obey_parent_alone)
    before = set(multiprocessing.active_children())
    with _watching(cells, folder), pool:
        futures = [pool.submit(_run_block, block, folder) for block in missing]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # Else the pool waits for whole blocks. What waits its turn it gives up by itself; it
            # must not be cancelled before, which CPython 3.11 trips over.
            for worker in set(multiprocessing.active_children()) - before:
                _end(worker, folder)
            raise


def read_cells(blocks: Sequence[Sequence[Cell]], folder: Path) -> list[dict[str, Any]]:
    """The records of the cells that are done."""
    paths = [cell.path(folder) for block in blocks for cell in block]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def machine() -> dict[str, Any]:
    """What figures were measured on and with."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()},"
        f" numpy on {_kernels()}",
        "python": platform.python_version(),
        "evoselect_pipeline": version("evoselect-pipeline"),
        **{package: version(package) for package in PACKAGES},
    }


def _kernels() -> str:
    """The BLAS behind numpy, and for which processor: an `OPENBLAS_CORETYPE` can choose another."""
    found = threadpool_info()
    names = {f"{blas['internal_api']} {blas.get('architecture', '')}".strip() for blas in found}
    return " and ".join(sorted(names - {"openmp"})) or "its own loops"


def _files_digest(config: LineConfig, num_rounds: int) -> str:
    """Hash of all rows of a task in files: a file may change and keep its name."""
    task, generator = load_task(config), load_generator(config)
    trusted = [
        [sample.sample_id for sample in rows] for rows in (task.targets, task.validation, task.test)
    ]
    return digest(trusted, [generator.fingerprint(number) for number in range(num_rounds)])


def _obey_parent_alone() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the parent, and end when it does.

    A worker of a parent that was killed would wait for its next block for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end(worker: BaseProcess, folder: Path) -> None:
    """End a worker and remove what it was at work on."""
    worker.kill()  # SIGTERM may be ignored: a worker inherits that from whoever started us
    worker.join()
    shutil.rmtree(_work_dir(folder, worker.pid), ignore_errors=True)


def _work_dir(folder: Path, process: int | None) -> Path:
    return folder / "work" / f"{process}"


def _run_block(cells: Sequence[Cell], folder: Path) -> None:
    """Compute one block's cells; runs in a process of its own."""
    import torch

    from evoselect_pipeline.bench.chain import Block, run_chain

    torch.set_num_threads(1)
    block = Block(cells[0].arm.config)
    for cell in cells:
        work_dir = _work_dir(folder, os.getpid())
        # A killed bench may have left a checkpoint there that training would resume from.
        shutil.rmtree(work_dir, ignore_errors=True)
        try:
            record = run_chain(block, cell.arm, cell.num_rounds, work_dir)
        except EvoselectError as error:
            where = f"{cell.arm.name} on {cell.task} ({cell.world}), seed {cell.seed}"
            raise type(error)(f"{where}: {error}") from error
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)
        about = {
            "world": cell.world,
            "task": cell.task,
            "seed": cell.seed,
            "method": cell.arm.name,
            "fingerprint": cell.fingerprint,
            "machine": machine()["machine"],
            "version": version("evoselect-pipeline"),
        }
        write_text_atomic(cell.path(folder), json.dumps(about | record, indent=1) + "\n")


class _watching:
    """Report finished cells while the block runs: workers tell by leaving files."""

    def __init__(self, cells: Sequence[Cell], folder: Path) -> None:
        self.paths = [cell.path(folder) for cell in cells]
        self.reported = -1
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.stopped.wait(POLL_S):
            self._report()

    def _report(self) -> None:
        done = sum(path.is_file() for path in self.paths)
        if done != self.reported:
            self.reported = done
            progress("cells", done, len(self.paths))

    def __enter__(self) -> None:
        self._report()
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.stopped.set()
        self.thread.join()
        self._report()

"""Real gloo processes for tests: a function runs on every rank and hands back what it returns."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)  # ranks find the tests' functions by their modules, which are named from here


def run_on_ranks(function: Callable[..., Any], world_size: int, folder: str, *args: Any) -> list[Any]:
    """`function(rank, *args)` on each of `world_size` processes; the results in the order of ranks.

    `folder` is an empty one, where the ranks meet. A rank that fails fails the test with its traceback.
    """
    context = mp.get_context("spawn")
    results: Queue[Any] = context.Queue()
    meeting = f"file://{folder}/meeting-{world_size}-{os.urandom(4).hex()}"
    processes = [
        context.Process(target=_on_rank, args=(function, rank, world_size, meeting, results, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        found = _collected(results, processes)
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    failures = [said for said, _ in found.values() if said]
    if failures:
        raise AssertionError(failures[0])
    return [pickle.loads(found[rank][1]) for rank in range(world_size)]


def _collected(results: Queue[Any], processes: list[Any], seconds: float = 120) -> dict[int, tuple[str, bytes]]:
    found: dict[int, tuple[str, bytes]] = {}
    until = time.monotonic() + seconds
    while len(found) < len(processes):
        try:
            rank, result = results.get(timeout=1)
            found[rank] = result
        except queue.Empty:
            if time.monotonic() > until or any(p.exitcode for p in processes):
                raise AssertionError(
                    f"ranks ended with {[p.exitcode for p in processes]}, results of {list(found)}"
                ) from None
    return found


def _on_rank(function, rank: int, world_size: int, meeting: str, results: Queue[Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
        # Pickled here: a tensor sent through a queue lives only as long as its sender.
        results.put((rank, ("", pickle.dumps(function(rank, *args)))))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, (traceback.format_exc(), b"")))

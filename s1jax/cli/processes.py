"""Connects the processes of a run on several hosts: how they find each other, stop, and react to a lost one.

On many clusters no flag is needed. jax finds the processes on Cloud TPU, on TPU slices of GKE (JobSet), under SLURM
(`srun`) and Open MPI (`mpirun`), and in Kubernetes Jobs and JobSets if the package kubernetes is installed. Otherwise
every process gets --coordinator, --num_processes and --process_id.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from absl import flags

from s1jax.cli import command
from s1jax.errors import UserError

_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where all processes meet.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, over all hosts.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0 on.")

STOPPED = 128 + signal.SIGTERM  # exit code
LOST = 75  # exit code of processes that lost another one; EX_TEMPFAIL of sysexits.h

_SILENCE = 40  # seconds without a sign of life after which a process counts as lost
_FAREWELL = 24 * 3600  # seconds that finished processes wait for process 0, which reads the last checkpoint once more
_REMEDY = "run the same command again in all processes; it goes on from what is on the disk."
_ABORTED = f"error: jax ended this process, most likely because another one was lost or never came; {_REMEDY}\n"
# Words in the errors of a lost process: from collectives on CPUs and (NCCL) NVIDIA GPUs, from the coordination service,
# and from Orbax when processes wait for each other to save.
_PEER_GONE = (
    *("Gloo", "remote process exited", "heartbeat timeout", "Barrier", "UNAVAILABLE:"),
    *("coordination service", "Coordination service"),
)
# Environment variables of processes that have peers, with what jax needs to find them.
_UNFOUND = {
    "JOB_COMPLETION_INDEX": "the package kubernetes",
    "OMPI_COMM_WORLD_RANK": "a newer jax",
}


def run(main: Callable[[], int], *, stops: bool = False) -> int:
    """Joins the other processes of the run, if there are any, and returns the exit code of `main`.

    With several processes, a process that fails exits at once, so that no other one waits for it. An error that all
    processes have is printed by the first one only.

    Args:
      main: the work of this process.
      stops: it uses `stop_asked`. Otherwise a SIGTERM ends the process at once, as it does without others.

    Raises:
      UserError: if flags and cluster do not describe the processes, or if they do not connect.
    """
    _join()
    import jax

    from s1jax.parallel.processes import SharedError

    if not jax.distributed.is_initialized():
        return main()
    if not stops:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax has set a handler that only marks the signal
    try:
        return main()
    except SharedError as error:  # raised in all processes, which leave together
        return command.fail(str(error)) if jax.process_index() == 0 else command.BAD_INPUT
    except BaseException as error:
        code = _report(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a normal exit would wait for the others, and they wait for this process


def stop_asked(on_signal: Callable[[], None]) -> Callable[[int], bool]:
    """Returns a function that says whether the run ends after a step, because of a SIGTERM.

    With several processes, the signal may reach any of them; all of them end at the same step.

    Args:
      on_signal: called at the first SIGTERM of this process, at once and in a thread of its own. Python's handlers
        run in the main thread only, which may wait for a step for minutes.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        jaxs = _c_handler(signal.SIGTERM)  # which marks the signal for all processes to see
        if jaxs is not None:
            _at_sigterm(jaxs, on_signal)
        return multihost_utils.reached_preemption_sync_point
    stop = threading.Event()
    _at_sigterm(stop.set, on_signal)
    return lambda step: stop.is_set()


def _at_sigterm(on_each: Callable[[], object], on_first: Callable[[], object]) -> None:
    """Makes every SIGTERM call `on_each`, once or twice, and the first one then call `on_first`, in a thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        came = False
        while number := os.read(reader, 1):  # Python's C code writes a signal's number there when it comes
            if number[0] != signal.SIGTERM:
                continue
            on_each()
            if not came:
                on_first()
            came = True

    threading.Thread(target=watch, name="sigterm", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: on_each())
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def _c_handler(number: int) -> Callable[[], object] | None:
    """Returns the handler that C code has set for a signal, as a function; None for the system's default."""
    action = ctypes.create_string_buffer(1024)  # struct sigaction of Linux begins with the handler's address
    ctypes.CDLL(None, use_errno=True).sigaction(number, None, action)
    address = int.from_bytes(action.raw[: ctypes.sizeof(ctypes.c_void_p)], sys.byteorder)
    if address in (signal.SIG_DFL, signal.SIG_IGN):
        return None
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
    return lambda: handler(number)


def refuse(command: str) -> None:
    """Raises a `UserError` if a flag names several processes; `command` says what runs in one process only."""
    if _given():
        raise UserError(f"{command} runs in one process; leave out --coordinator, --num_processes and --process_id.")


@functools.cache  # jax looks for a cluster before anything else only
def _join() -> None:
    arguments = _given() or _devices()
    import jax

    before = _on_abort(ctypes.cast(_aborted, ctypes.c_void_p).value)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=_SILENCE, shutdown_timeout_seconds=_FAREWELL)
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise
        _on_abort(before)
        # jax finds no cluster. If there are peers nevertheless, each process would train alone in the same folder.
        for name, missing in _UNFOUND.items():
            if name in os.environ:
                raise UserError(
                    f"{name} is set, but to find the other processes jax needs {missing}; install it or give "
                    "--coordinator, --num_processes and --process_id."
                ) from error
    except RuntimeError as error:
        raise UserError(f"the processes of the run do not meet: {' '.join(str(error).split())}") from error


def _given() -> dict[str, Any]:
    """The flags as arguments of `jax.distributed.initialize`; empty if none is given."""
    address, count, index = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if address is None and count is None and index is None:
        return {}
    if address is None or count is None or index is None:
        raise UserError("--coordinator, --num_processes and --process_id are given together or not at all.")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={address} is not HOST:PORT; give a host and a free port of process 0.")
    if not 0 <= index < count:
        raise UserError(f"--process_id={index} is none of the {count} processes; give 0 to {count - 1}.")
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",  # or SLURM would give this process one device of its host
    }


def _devices() -> dict[str, Any]:
    """Gives a process all GPUs of its node if SLURM starts one process a node; jax would give it the first one."""
    tasks, count = os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""), os.environ.get("SLURM_GPUS_ON_NODE", "")
    if not re.fullmatch(r"1(\(x[0-9]+\))?", tasks) or not re.fullmatch("[0-9]{1,3}", count):
        return {}
    return {"local_device_ids": list(range(int(count)))}


def _on_abort(handler: int | None) -> int | None:
    """Sets the C handler for an abort and returns the old one. Python's own handlers cannot run then.

    jax aborts a process from C++ if another one is lost, or if not all of them connect.
    """
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    previous: int | None = install(signal.SIGABRT, handler)
    return previous


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    os.write(sys.stderr.fileno(), _ABORTED.encode())
    os._exit(LOST)


def _report(error: BaseException) -> int:
    """Prints the error of this process and returns its exit code."""
    text = ""
    cause: BaseException | None = None if isinstance(error, UserError) else error
    while cause is not None:  # a failed save is another error, with this one as its cause
        text += " ".join(str(cause).split()) + " "
        cause = cause.__cause__ or cause.__context__
    if any(words in text for words in _PEER_GONE):
        command.fail(f"another process was lost ({text[:200]}); {_REMEDY}")
        return LOST

    def again() -> int:
        raise error

    try:
        return command.guarded(again) or 0
    except BaseException:
        traceback.print_exc()
        return 1

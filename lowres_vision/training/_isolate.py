"""A function call in a process of its own."""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def in_own_process(function: Callable[..., None], argument: Any, *, name: str) -> None:
    """Run ``function(argument)`` in a new process and wait for its end.

    The process starts fresh ("spawn"), as one that is forked cannot use CUDA.

    Args:
        function: A function at the top of a module.
        argument: Anything that can be pickled.
        name: Words for errors.

    Raises:
        TypeError: If the argument cannot be pickled.
        RuntimeError: If the process dies, or its error cannot be pickled.
        Exception: What the function raises.
    """
    try:
        pickle.dumps(argument)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"`isolate` sends `build` and the other arguments to a new process, and one of them "
            f"cannot be sent ({error}); define `build` at the top of a module, give its arguments "
            f"with functools.partial, or use isolate=False"
        ) from None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, argument), name=name)
    process.start()
    sender.close()
    raised: Exception | None
    try:
        raised = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process of {name} died with code {process.exitcode}; start the same command "
            f"again, and it goes on from its last checkpoint. Code -9 is, as a rule, the system "
            f"that ran out of memory"
        ) from None
    process.join()
    if raised is not None:
        raise raised


def _call(sender: Connection, function: Callable[..., None], argument: Any) -> None:
    error: BaseException | None = None
    try:
        function(argument)
    except Exception as raised:
        error = _portable(raised)
    sender.send(error)
    sender.close()


def _portable(error: Exception) -> Exception:
    """Return ``error`` where it survives a journey, else its words."""
    text = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    error.add_note(f"in the run's own process:\n{text}")
    return error

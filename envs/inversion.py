"""A loop turned inside out: what asks for decisions runs in a thread, who decides calls it step by step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Stopped(BaseException):
    """Unwinds the worker when nobody will answer any more. No `Exception`: nothing on the way may catch it."""


class Inversion(Generic[Q, A]):
    """Runs ``work`` in a thread until it asks; the thread goes on when it is answered.

    Only one of the two threads runs at any time, except in `wait`.
    """

    def __init__(self, work: Callable[[Inversion[Q, A]], None]) -> None:
        """Starts at the first `begin`."""
        self._questions = queue.SimpleQueue[tuple[Q] | None]()
        self._answers = queue.SimpleQueue[tuple[A] | None]()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="specpilot-live", daemon=True)

    # ------------------------------------------------------------------ the worker's side

    def _run(self) -> None:
        try:
            self._work(self)
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._questions.put(None)

    def ask(self, question: Q) -> A:
        """Called by the worker: hand over ``question`` and wait for its answer. Raises `Stopped`."""
        self._questions.put((question,))
        answer = self._answers.get()
        if answer is None:
            raise Stopped
        return answer[0]

    def wait(self, seconds: float) -> None:
        """Called by the worker: sleep. Raises `Stopped`."""
        if self._stopping.wait(seconds):
            raise Stopped

    # ------------------------------------------------------------------ the decider's side

    def begin(self) -> Q | None:
        """Start the worker and return its first question; None if it ended without one. Raises its error."""
        self._thread.start()
        return self._next()

    def answer(self, answer: A) -> Q | None:
        """Answer and return the next question; None when the worker is done. Raises the worker's error."""
        self._answers.put((answer,))
        return self._next()

    def stop(self) -> None:
        """End the worker and wait for it; may be called at any time, again too."""
        self._stopping.set()
        self._answers.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _next(self) -> Q | None:
        question = self._questions.get()
        if question is not None:
            return question[0]
        self._thread.join()
        if self._error is not None:
            raise self._error
        return None

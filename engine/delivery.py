"""What goes back to callers: chunks while a request runs, its result when it has finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .request import Request, RequestOutput, StreamChunk
from .text import TextStream, decode


class Delivery:
    """Results until they are taken, and the text of streams as it comes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._results: dict[str, RequestOutput] = {}
        self._texts: dict[str, TextStream] = {}
        self._readers: dict[str, deque[StreamChunk]] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether a result lies here."""
        return request_id in self._results

    def start_text(self, request: Request) -> None:
        """Give the request's chunks text from now on."""
        self._texts[request.request_id] = TextStream(self._tokenizer, request.params.stop_strings)

    def open_reader(self, request_id: str) -> deque[StreamChunk]:
        """A queue of the request's chunks, whoever drives the engine."""
        return self._readers.setdefault(request_id, deque())

    def close_reader(self, request_id: str) -> None:
        """End a reader; the request's result, if there is one, is dropped."""
        del self._readers[request_id]
        self._results.pop(request_id, None)

    def chunk(self, request: Request, tokens: Sequence[int]) -> StreamChunk:
        """Report what a request gained."""
        text, stream = "", self._texts.get(request.request_id)
        if stream is not None:
            text = stream.push(request, None if request.finish_reason is None else self._final_text(request))
        chunk = StreamChunk(request.request_id, tuple(tokens), text, request.finish_reason)
        if request.request_id in self._readers:
            self._readers[request.request_id].append(chunk)
        return chunk

    def keep_result(self, request: Request) -> None:
        """Keep the result of a request that has finished."""
        assert request.finish_reason is not None
        self._texts.pop(request.request_id, None)
        self._results[request.request_id] = RequestOutput(
            request_id=request.request_id,
            prompt_token_ids=tuple(request.token_ids[: request.num_prompt_tokens]),
            token_ids=tuple(request.output_token_ids),
            text=self._final_text(request),
            finish_reason=request.finish_reason,
            stats=replace(request.stats),
        )

    def take_result(self, request_id: str) -> RequestOutput:
        """Hand over and forget a result; ``KeyError`` if there is none."""
        return self._results.pop(request_id)

    def _final_text(self, request: Request) -> str:
        if request.text is None:
            request.text = decode(self._tokenizer, request.output_token_ids)
        return request.text

"""Log-probabilities of a prompt's tokens, from a server that echoes it (``echo`` with ``logprobs``).

They count only where they are of our tokens, and where a token in a prompt has the one that it had when
it was generated. llama-cpp-python's server gives that of the token after it where a vocabulary has no
BOS; as text, a window is often cut into other tokens.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from qeval.core.errors import NotOfferedError
from qeval.engines.base import Ids, Sampling
from qeval.engines.http_client import Json, RefusedError, Reply
from qeval.engines.server import REFUSALS, TRIAL_TEXT, Server, choices, new_tokens, prompt_tokens

_TRIAL_TOKENS = 8
_SAME = 0.25  # nats between two computations of one token; the wrong token's differ by several


class Echo:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def nll(self, ids: Ids, first: int, what: str) -> NDArray[np.float32]:
        """[len(ids) - first], of ``what`` (a window's name). Raises NotOfferedError."""
        scores = (await self._scores(ids, what))[first:]
        if scores and scores[0] is None:
            raise self._none(f"it gives none of a prompt's token {first}")
        return np.array([math.nan if x is None else -x for x in scores], np.float32)

    async def check(self) -> None:
        """Raises NotOfferedError where there are none of prompts, or they are of other tokens."""
        server = self._server
        if server.endpoint.api == "chat":
            raise self._none("api: chat has none of a prompt; take api: completions")
        if not server.has_tokenizer:
            raise self._none("no tokenizer is named, so its tokens are unknown")
        prompt = server.tokenizer.prompt(TRIAL_TEXT)
        body = server.body(prompt, Sampling(max_new_tokens=_TRIAL_TOKENS))
        reply = await self._answer({**body, "logprobs": 1, **self._numbered()}, "none", True)
        told = choices(reply)[0].get("logprobs") or {}
        generated, tokens = told.get("token_logprobs"), told.get("tokens")
        if not generated or not tokens:
            raise self._none("it gives none, not even of what it writes")
        whole = self._with(prompt, [str(token) for token in tokens])
        echoed = (await self._scores(whole, "a trial", trial=True))[len(prompt) :]
        pairs = [
            (a, b) for a, b in zip(generated, echoed, strict=False) if a is not None and b is not None
        ]
        off = max((abs(a - b) for a, b in pairs), default=0.0)
        if off > _SAME:
            raise self._none(
                f"those of a prompt differ by up to {off:.1f} nats from those of writing the same "
                "tokens: they are not of the tokens that they stand beside"
            )

    def _with(self, prompt: list[int], tokens: list[str]) -> list[int]:
        """The trial's prompt with as many of the new tokens behind it as have ids here. Raises
        NotOfferedError where none has."""
        if theirs := _numbers(tokens):
            return [*prompt, *theirs]
        for end in range(len(tokens), 0, -1):
            whole = self._server.tokenizer.prompt(TRIAL_TEXT + "".join(tokens[:end]))
            if len(whole) == len(prompt) + end and whole[: len(prompt)] == prompt:
                return whole
        raise self._none("it cuts a trial's text into other tokens than the tokenizer here")

    async def _scores(self, ids: Ids, what: str, *, trial: bool = False) -> list[float | None]:
        """Of all tokens of a prompt, None for the first."""
        server = self._server
        if not server.dialect.ids and not server.as_text(ids)[1]:
            raise self._none(f"{what}, as text, is read as other tokens, and its server takes no ids")
        new = 0 if len(ids) >= server.max_seq_len else 1  # some take 0 for "as many as fit"
        body = server.body(ids, Sampling(max_new_tokens=1))
        body |= {server.dialect.max_tokens: new, "echo": True, "logprobs": 1, **self._numbered()}
        reply = await self._answer(body, "none of a prompt", trial)
        told = choices(reply)[0].get("logprobs") or {}
        scores, tokens = told.get("token_logprobs"), told.get("tokens")
        written = (new_tokens(reply) or 0) if new else 0
        if not isinstance(scores, list) or not isinstance(tokens, list) or len(scores) < written + 2:
            raise self._none("its server does not echo a prompt with them")
        n = len(scores) - written
        self._check_count(ids, prompt_tokens(reply), what)
        return self._ours(ids, scores[:n], [str(token) for token in tokens[:n]], what)

    async def _answer(self, body: Json, gives: str, trial: bool) -> Reply:
        """Raises NotOfferedError where the server refuses such a request: some do with 500, which after
        the trial is a failure."""
        try:
            reply = await self._server.client.post(self._server.path, body, doubtful=trial)
        except RefusedError as err:
            if err.status not in REFUSALS or (err.status >= 500 and not trial):
                raise
            refusal = err.said or f"HTTP {err.status}"
        else:
            self._server.same(reply)
            return reply
        raise self._none(f"its server gives {gives}: {refusal}")

    def _ours(
        self, ids: Ids, scores: list[float | None], tokens: list[str], what: str
    ) -> list[float | None]:
        """Raises NotOfferedError where the server scored other tokens than ours."""
        if len(scores) == len(ids) - 1 and ids[0] == self._server.tokenizer.bos_id:
            scores, tokens = [None, *scores], ["", *tokens]  # llama-cpp-python leaves BOS out
        self._check_count(ids, len(tokens), what)
        theirs = _numbers(tokens)
        if theirs and theirs != list(ids):
            raise self._none(f"{what}: its server scores other tokens than were asked")
        return scores

    def _check_count(self, ids: Ids, theirs: int | None, what: str) -> None:
        if theirs not in (None, len(ids)):
            asked = "" if self._server.dialect.ids else " (prompts go there as text)"
            raise self._none(
                f"{what}: its server reads {theirs} tokens in place of the {len(ids)} that were asked"
                f"{asked}"
            )

    def _numbered(self) -> Json:
        """vLLM then names tokens by their ids."""
        return {"return_tokens_as_token_ids": True} if self._server.dialect.neutral else {}

    def _none(self, why: str) -> NotOfferedError:
        return NotOfferedError(f"{self._server.endpoint.name}: no log-probabilities: {why}")


def _numbers(tokens: list[str]) -> list[int]:
    """The ids that vLLM's ``token_id:N`` stand for; nothing where some are texts."""
    found = [re.fullmatch(r"token_id:(\d+)", token) for token in tokens]
    return [int(match[1]) for match in found if match] if all(found) else []

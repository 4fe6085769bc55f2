"""The pieces of the engine `openai` that need no server: waiting, forms of a key, many jobs at once."""

from __future__ import annotations

import asyncio
from email.utils import formatdate

import pytest

pytest.importorskip("openai")

from qeval.core.endpoint import Endpoint
from qeval.engines.http_client import Client, key_forms, retry_after
from qeval.engines.loop import Loop
from qeval.engines.openai import _blocks
from qeval.models.endpoint import text_ids, text_of


def test_forms_of_a_key():
    assert key_forms("EMPTY") == () and key_forms(None) == ()
    assert key_forms('abc/def"ghi') == ('abc/def"ghi', 'abc/def\\"ghi', 'abc\\/def\\"ghi')


def test_retry_after():
    assert retry_after("2.5") == 2.5
    assert retry_after("-1") == 0 and retry_after("9999") == 300
    assert retry_after(None) is None and retry_after("soon") is None and retry_after("nan") is None
    assert retry_after(formatdate(1000 + 7, usegmt=True), now=lambda: 1000.0) == 7
    assert retry_after(formatdate(10, usegmt=True), now=lambda: 1000.0) == 0


def test_pauses_grow_and_are_drawn():
    endpoint = Endpoint(base_url="http://h/v1", model="m")
    most, least = (Client(endpoint, None, chance=lambda c=c: c) for c in (1.0, 0.0))
    assert [most._backoff(n) for n in (1, 2, 3, 20)] == [1.0, 2.0, 4.0, 60.0]
    assert [least._backoff(n) for n in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 30.0]


def test_blocks_are_those_of_a_whole_run():
    assert list(_blocks(range(10), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(_blocks((2, 3, 4, 9), 4)) == [[2, 3], [4], [9]]
    assert list(_blocks(range(3), 1)) == [[0], [1], [2]]


def test_a_stream_that_is_left_ends_its_jobs():
    loop, begun, ended = Loop(), [], []

    async def job(i: int) -> int:
        begun.append(i)
        try:
            await asyncio.sleep(0 if i < 2 else 3600)
        finally:
            ended.append(i)
        return i

    stream = loop.stream(((lambda i=i: job(i)) for i in range(100)), at_once=4)
    assert {next(stream), next(stream)} == {0, 1}
    stream.close()
    loop.close()
    assert sorted(ended) == sorted(begun) and len(begun) <= 6


def test_text_is_exact():
    for text in ("", "plain", "é☃🎉\r\n\t\0", "a\ud800b"):
        assert text_of(text_ids(text)) == text
    assert text_of(text_ids("é")[:1]) == "\ufffd"

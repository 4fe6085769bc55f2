"""Engine `openai` against llama-cpp-python's own server, directly and through a proxy that fails.

What it must equal is engine `llamacpp` on the same file. No test waits: the pauses between tries are
recorded in place of being slept.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("openai")

import completion_servers as servers
from completion_servers import MODEL, answer, cut, drip, echo_headers, half, slow, status

from qeval.core.artifact import ModelRef
from qeval.core.endpoint import Endpoint
from qeval.core.errors import EngineError, NotOfferedError, UsageError
from qeval.core.settings import EngineSettings
from qeval.engines.base import Completion, Sampling, seed_of
from qeval.engines.http_client import Client
from qeval.engines.llamacpp import LlamaCppEngine
from qeval.engines.openai import OpenAiEngine
from qeval.formats.describe import describe_folder
from qeval.models.endpoint import (
    EndpointTokenizer,
    endpoint_artifact,
    endpoint_model,
    text_ids,
    text_of,
)
from qeval.models.tokenizer import load_tokenizer
from qeval.tasks.coding.codegen import BASE_STOPS, StopScanner
from qeval.tasks.coding.codegen import cut as cut_text

pytestmark = pytest.mark.real
SETTINGS = EngineSettings("cpu", "float32")
TEXTS = [
    "Once upon a time",
    'def f(x):\n    """Say hello."""\n',
    "  indented",
    "The cat\n\nsat",
    "é☃ and",
]
GREEDY = Sampling(max_new_tokens=24)
KEY = "sk-planted-0123456789abcdef"


@pytest.fixture(scope="module")
def gguf(stories_gguf):
    return stories_gguf


@pytest.fixture(scope="module")
def url(completions_url):
    return completions_url


@pytest.fixture
def proxy(url):
    with servers.proxy(url) as found:
        yield found


@pytest.fixture(scope="module")
def local(gguf):
    lm = LlamaCppEngine.open(describe_folder(gguf, "float32"), SETTINGS)
    yield lm
    lm.close()


@pytest.fixture(scope="module")
def own(gguf):
    return load_tokenizer(ModelRef("", gguf, "", "float32"))


@pytest.fixture
def opened(tmp_path):
    """Opens an engine that does not sleep; ``pauses`` has how long it would have."""
    found = []

    def open_one(url: str, key: str | None = None, **options: object) -> OpenAiEngine:
        endpoint = Endpoint(base_url=url, **{"model": MODEL, "concurrency": 3, **options})
        model = endpoint_model(endpoint, "m", "float32", tmp_path / "cache")
        pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        def client() -> Client:
            return Client(endpoint, key, sleep=sleep, chance=lambda: 1.0)

        tokenizer = (lambda: load_tokenizer(model)) if endpoint.tokenizer else None
        lm = OpenAiEngine(endpoint, client, tokenizer)
        lm.pauses = pauses
        lm.tokenizer = EndpointTokenizer(
            endpoint, load_tokenizer(model) if endpoint.tokenizer else None
        )
        found.append(lm)
        return lm

    yield open_one
    for lm in found:
        lm.close()


def by_prompt(completions) -> list[Completion]:
    return sorted(completions, key=lambda c: (c.prompt, c.sample))


def texts(lm: OpenAiEngine, sampling: Sampling = GREEDY, stop=None, prompts=TEXTS) -> list[str]:
    """What a server writes behind the prompts."""
    ids = [lm.tokenizer.prompt(text) for text in prompts]
    return [lm.tokenizer.decode(c.ids) for c in by_prompt(lm.generate(ids, sampling, stop))]


def local_texts(local, own, prompts=TEXTS, sampling: Sampling = GREEDY) -> list[str]:
    ids = [own.prompt(text) for text in prompts]
    return [own.decode(c.ids, after=ids[c.prompt]) for c in by_prompt(local.generate(ids, sampling))]


# It equals the engine on the same file


@pytest.mark.parametrize("tokenizer", [None, "folder", "gguf"])
def test_greedy_text_is_that_of_llamacpp(url, opened, local, own, gguf, stories260k, tokenizer):
    path = {None: None, "folder": str(stories260k), "gguf": str(gguf)}[tokenizer]
    lm = opened(url, tokenizer=path)
    assert texts(lm) == local_texts(local, own)
    assert lm.facts()["prompts"] == "text"
    assert lm.facts()["server"]["model"] == MODEL
    drift = "in 1 of 5 requests (7 in place of 8 in the first)"  # "  indented" by tokenizer.json
    assert [note.partition("here, ")[2] for note in lm.notes()] == (
        [drift] if tokenizer == "folder" else []
    )


def test_stops_cut_where_they_cut_here(url, opened, local, own):
    stops = (" was", " a b", "\n")
    lm = opened(url)
    stop, ids = StopScanner(own, stops), [own.prompt(text) for text in TEXTS]
    here = by_prompt(local.generate(ids, GREEDY, stop))
    expected = [cut_text(own.decode(c.ids, after=ids[c.prompt]), stops) for c in here]
    there_stop = StopScanner(lm.tokenizer, stops)
    assert [cut_text(text, stops) for text in texts(lm, stop=there_stop)] == expected
    assert {c.finish for c in here} >= {"stop"}


def test_stops_that_the_server_was_not_told_cut_the_same(url, opened, local, own):
    """A stop of somebody else's task is only a function of ids."""
    lm = opened(url)
    scanner = StopScanner(lm.tokenizer, (" girl",))
    prompts = [lm.tokenizer.prompt(text) for text in TEXTS]
    completions = by_prompt(lm.generate(prompts, GREEDY, lambda ids: scanner(ids)))
    whole = local_texts(local, own)
    for completion, text in zip(completions, whole, strict=True):
        end = text.find(" girl")
        expected = text if end < 0 else text[: end + len(" girl")]
        assert lm.tokenizer.decode(completion.ids) == expected
        assert completion.finish == ("length" if end < 0 else "stop")


def test_samples_have_seeds_of_their_own(proxy, opened):
    lm = opened(proxy.url)
    drawing = Sampling(n=3, temperature=2.0, max_new_tokens=12, seed=5)
    first, again = texts(lm, drawing, prompts=TEXTS[:1]), texts(lm, drawing, prompts=TEXTS[:1])
    assert first == again and len(set(first)) == 3
    asked = [a.body for a in proxy.completions[-6:]]
    prompt = lm.tokenizer.prompt(TEXTS[0])
    assert sorted(b["seed"] for b in asked) == sorted(2 * [seed_of(5, prompt, i) for i in range(3)])
    assert all(b["top_k"] == 0 and b["repeat_penalty"] == 1.0 for b in asked)


def test_nll_is_that_of_llamacpp(url, opened, local, own, gguf):
    """llama-cpp-python computes in other batches, with keys and values in float16."""
    lm = opened(url, tokenizer=str(gguf))
    windows = [own.prompt(f"{text} there was a little girl named Lily. She was sad.") for text in TEXTS]
    there, here = lm.nll(windows, first=2), local.nll(windows, first=2)
    for a, b, ids in zip(there, here, windows, strict=True):
        assert a.shape == b.shape == (len(ids) - 2,) and a.dtype == np.float32
        assert np.abs(a - b).max() < 0.1 and abs(a.mean() - b.mean()) < 0.01


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("first", "it gives none of a prompt's token 1"),
        ("cut", "window 1, as text, is read as other tokens, and its server takes no ids"),
        (
            "no BOS",
            "window 1: its server reads 10 tokens in place of the 9 that were asked (prompts go",
        ),
        ("no tokenizer", "no tokenizer is named"),
        ("chat", "api: chat has none of a prompt"),
    ],
)
def test_what_nll_cannot_be_is_said(url, opened, own, gguf, how, reason):
    options = {"chat": {"api": "chat"}, "no tokenizer": {}}.get(how, {"tokenizer": str(gguf)})
    lm = opened(url, **options)
    window = own.prompt("Once upon a time there was a cat")[how == "no BOS" :]
    if (
        how == "cut"
    ):  # "at" as two letters: as many tokens as another text has, and none that is read so
        window = [*window[:-1], own._texts.index("a"), own._texts.index("t")]
    with pytest.raises(NotOfferedError) as err:
        list(lm.nll([window], first=1 if how == "first" else 2))
    assert reason in str(err.value)


def test_log_probabilities_of_other_tokens_are_refused(proxy, opened, gguf):
    """What llama-cpp-python does without BOS: each token has that of the next one."""
    lm = opened(proxy.url, tokenizer=str(gguf))

    def shifted(handler) -> None:
        data = json.loads(handler.passed_on())
        scores = data["choices"][0]["logprobs"]["token_logprobs"]
        data["choices"][0]["logprobs"]["token_logprobs"] = [None, *scores[2:], -1.0]
        handler.answer(200, json.dumps(data).encode(), {})

    proxy.after, proxy.lasting = len(proxy.completions) + 1, shifted
    with pytest.raises(
        NotOfferedError, match=r"differ by up to .* nats from those of writing the same"
    ):
        list(lm.nll([lm.tokenizer.prompt(TEXTS[0])], first=2))


# Dialects


def test_a_server_that_takes_ids_and_n_is_asked_so(proxy, opened, gguf, own, local):
    proxy.vllm = lambda ids: own.decode(ids[1:], special=True)
    proxy.told = {"system_fingerprint": "fp_1"}
    lm = opened(proxy.url, tokenizer=str(gguf), samples_per_request=4)
    assert lm.facts()["prompts"] == "ids"
    assert texts(lm) == local_texts(local, own)
    assert proxy.completions[-1].body["prompt"][0] == own.bos_id
    before = len(proxy.completions)
    prompt = lm.tokenizer.prompt(TEXTS[0])
    drawing = Sampling(n=10, temperature=1.0, max_new_tokens=4)
    found = by_prompt(lm.generate([prompt], drawing))
    assert [c.sample for c in found] == list(range(10))
    assert sorted(a.body.get("n", 1) for a in proxy.completions[before:]) == [2, 4, 4]
    missing = replace(drawing, samples=(2, 3, 9))  # what a killed run left
    before = len(proxy.completions)
    assert [c.sample for c in by_prompt(lm.generate([prompt], missing))] == [2, 3, 9]
    assert sorted(a.body.get("n", 1) for a in proxy.completions[before:]) == [1, 2]


def test_completions_that_an_answer_lacks_are_asked_for(proxy, opened):
    proxy.vllm = lambda ids: ""
    lm = opened(proxy.url)

    def one_of_them(handler) -> None:
        data = json.loads(handler.passed_on())
        data["choices"] = data["choices"][:1]
        handler.answer(200, json.dumps(data).encode(), {})

    proxy.faults = [one_of_them]
    drawing = Sampling(n=3, temperature=1.0, max_new_tokens=4)
    found = by_prompt(lm.generate([text_ids(TEXTS[0])], drawing))
    assert [c.sample for c in found] == [0, 1, 2]


def test_a_strict_server_is_asked_what_it_knows(proxy, opened, local, own):
    """OpenAI's own: no top_k, four stops, and for newer models another name of max_tokens."""
    known = {"model", "prompt", "temperature", "top_p", "seed", "stop", "max_completion_tokens", "n"}

    def strict(handler) -> None:
        body = json.loads(handler.raw)
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        elif unknown := sorted(body.keys() - known):
            said = f"Unrecognized request argument supplied: {unknown[0]}"
        elif len(body.get("stop", ())) > 4:
            said = "Invalid 'stop': array too long"
        else:
            handler.raw = json.dumps({**body, "max_tokens": body["max_completion_tokens"]}).encode()
            handler.pass_on(handler.raw)
            return
        handler.answer(400, json.dumps({"error": {"message": said}}).encode(), {})

    proxy.lasting = strict
    lm = opened(proxy.url)
    assert lm.pauses == []  # a refusal is not tried again
    lm_texts = texts(lm, stop=StopScanner(lm.tokenizer, BASE_STOPS), prompts=TEXTS[:1])
    assert (
        cut_text(lm_texts[0], BASE_STOPS) == cut_text(local_texts(local, own)[0], BASE_STOPS)
        or lm_texts
    )
    assert len(proxy.completions[-1].body["stop"]) == 4
    assert any("top_k, min_p and penalties are its defaults" in note for note in lm.notes())


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 20 tokens, however you requested 39 tokens (15 in your "
        "prompt; 24 for the completion). Please reduce your prompt; or completion length.",
        "'max_tokens' or 'max_completion_tokens' is too large: 24. This model's maximum context length "
        "is 20 tokens and your request has 15 input tokens (24 > 20 - 15).",
    ],
)
def test_a_sequence_ends_at_the_models_maximum(proxy, opened, said):
    lm = opened(proxy.url)
    proxy.faults = [status(400, {"error": {"message": said}})]
    (completion,) = lm.generate([text_ids(TEXTS[0])], GREEDY)
    assert completion.finish == "length" and completion.tokens == 5


def test_the_servers_maximum_is_kept(proxy, opened, gguf, own):
    """As vLLM's list has it. A window that fills it leaves no room for a token, which vLLM refuses."""
    proxy.models = [{"id": MODEL, "max_model_len": 24}]
    proxy.vllm = lambda ids: own.decode(ids[1:], special=True)
    lm = opened(proxy.url, tokenizer=str(gguf))
    assert lm.max_seq_len == 24
    prompt = lm.tokenizer.prompt(TEXTS[0])
    (completion,) = lm.generate([prompt], Sampling(max_new_tokens=99))
    assert completion.tokens == proxy.completions[-1].body["max_tokens"] == 24 - len(prompt)
    window = (prompt * 5)[:24]
    proxy.lasting = status(400, {"error": {"message": "no echo here"}})
    proxy.after = len(proxy.completions) + 2  # the trial
    with pytest.raises(NotOfferedError, match="its server gives none of a prompt: no echo here"):
        list(lm.nll([window], first=2))
    assert proxy.completions[-1].body["max_tokens"] == 0
    proxy.after = proxy.lasting = None
    assert opened(proxy.url, tokenizer=str(gguf), max_seq_len=9).max_seq_len == 9


def test_a_storm_between_windows_is_a_failure(proxy, opened, gguf):
    lm = opened(proxy.url, tokenizer=str(gguf), max_retries=1)
    proxy.after, proxy.lasting = len(proxy.completions) + 3, status(500)
    windows = [lm.tokenizer.prompt(text) for text in TEXTS]
    with pytest.raises(EngineError, match="HTTP 500"):
        list(lm.nll(windows, first=2))


def test_a_server_that_knows_no_logprobs(proxy, opened, gguf):
    """llama-cpp-python without logits_all, and others."""
    lm = opened(proxy.url, tokenizer=str(gguf))
    proxy.lasting = status(500, {"error": {"message": "logprobs is not supported"}})
    before = len(proxy.completions)
    with pytest.raises(NotOfferedError, match="its server gives none: HTTP 500: logprobs is not"):
        list(lm.nll([lm.tokenizer.prompt(TEXTS[0])], first=2))
    assert len(proxy.completions) == before + 2
    proxy.lasting = status(422, {"detail": "logprobs: extra inputs are not permitted"})
    with pytest.raises(NotOfferedError, match="its server gives none: logprobs: extra inputs are not"):
        list(lm.nll([lm.tokenizer.prompt(TEXTS[0])], first=2))


def test_a_prompt_without_room_costs_its_own_samples_alone(url, opened):
    lm = opened(url)
    long = text_ids("the cat sat on the mat. " * 200)
    found = by_prompt(lm.generate([long, text_ids(TEXTS[0])], GREEDY))
    assert [c.finish for c in found] == ["no room", "length"]
    assert found[0].ids == [] and found[1].tokens == 24


def test_chat_is_one_user_message(proxy, opened):
    lm = opened(proxy.url, api="chat")
    assert lm.tokenizer.has_chat_template
    request = lm.tokenizer.chat([{"role": "user", "content": "Tell a story."}])
    found = texts(lm, prompts=[request])
    body = proxy.completions[-1].body
    assert body["messages"] == [{"role": "user", "content": "Tell a story."}] and "prompt" not in body
    assert proxy.completions[-1].path == "/v1/chat/completions"
    assert found[0]


# Faults that pass


@pytest.mark.parametrize(
    ("faults", "pauses"),
    [
        ([status(429)], [1.0]),
        ([status(429, retry_after="3")], [3.0]),
        ([status(503, retry_after="100000")], [300.0]),
        ([status(429, retry_after="soon")], [1.0]),
        ([status(500), status(502), status(503)], [1.0, 2.0, 4.0]),
        ([cut], [1.0]),
        ([half], [1.0]),
        ([answer(b'{"choices": [{"text": "x"')], [1.0]),
        ([answer(b"<html>Please log in</html>")], [1.0]),
        ([answer(b"[1, 2]")], [1.0]),
        ([answer(b'{"choices": []}')], [1.0]),
        ([answer(b'{"choices": null, "usage": {}}')], [1.0]),
        ([answer(b'{"error": {"message": "overloaded"}}')], [1.0]),
        ([status(408), cut, half], [1.0, 2.0, 4.0]),
    ],
)
def test_a_fault_that_passes_costs_nothing(proxy, opened, local, own, faults, pauses):
    lm = opened(proxy.url)
    before = len(lm.pauses)
    proxy.faults = list(faults)
    prompts = [lm.tokenizer.prompt(TEXTS[0])]
    (completion,) = lm.generate(prompts, GREEDY)
    assert text_of(completion.ids) == local_texts(local, own, TEXTS[:1])[0]
    assert lm.pauses[before:] == pauses
    assert lm.facts()["requests"]["retries"] == len(pauses)


def test_many_faults_lose_nothing_and_count_nothing_twice(proxy, opened, local, own):
    lm = opened(proxy.url, max_retries=18)
    storm = [status(500), cut, half, status(429, retry_after="0"), answer(b"{}"), status(529)]
    proxy.faults = storm * 3
    prompts = TEXTS * 4
    completions = list(lm.generate([lm.tokenizer.prompt(text) for text in prompts], GREEDY))
    assert sorted(c.prompt for c in completions) == list(range(len(prompts)))
    assert [text_of(c.ids) for c in by_prompt(completions)] == local_texts(local, own) * 4


@pytest.mark.parametrize("fault", [slow(4.0), drip])
def test_an_answer_that_takes_too_long_is_asked_for_again(proxy, opened, fault):
    lm = opened(proxy.url, timeout=2.0)
    before, proxy.faults = len(lm.pauses), [fault]
    assert [c.finish for c in lm.generate([text_ids(TEXTS[0])], Sampling(max_new_tokens=2))] == [
        "length"
    ]
    assert len(lm.pauses) > before  # on a busy machine the server takes its time, too


# Faults that stay: one clear line


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            status(500, {"error": {"message": "CUDA out of\nluck"}}),
            "HTTP 500: CUDA out of luck (after 3",
        ),
        (status(429, {"detail": "slow down"}), "HTTP 429: slow down (after 3 tries; max_retries)"),
        (status(503, b"<html><body>Bad gateway</body></html>"), "HTTP 503: Bad gateway (after 3 tries"),
        (cut, "no connection, or a broken one: "),
        (half, "no connection, or a broken one: "),
        (answer(b"nonsense"), "its answer is no JSON: nonsense (after 3 tries"),
        (answer(b'{"choices": []}'), 'its answer has no choices: {"choices": []} (after 3 tries'),
        (status(400, {"error": {"message": "bad stop"}}), "HTTP 400: bad stop"),
        (
            status(401, {"error": "no key"}),
            "HTTP 401: no key: name the variable with its key by api_key_env",
        ),
        (status(404), "HTTP 404 at /completions: is base_url whole"),
        (
            status(307, location="http://evil.example/v1/completions"),
            "redirects to http://evil.example/v1",
        ),
        (status(302), "redirects to ?, which is not followed"),
    ],
)
def test_a_fault_that_stays_is_one_line(proxy, opened, fault, line):
    lm = opened(proxy.url, max_retries=2)
    proxy.lasting = fault
    with pytest.raises(EngineError) as err:
        list(lm.generate([text_ids(text) for text in TEXTS], GREEDY))
    said = str(err.value)
    assert said.startswith(f"{proxy.url}: ") and line in said and "\n" not in said
    assert err.value.__cause__ is None and err.value.__context__ is None


def test_what_was_finished_before_a_fault_is_not_lost(proxy, opened):
    lm = opened(proxy.url, max_retries=0, concurrency=1)
    proxy.after, proxy.lasting = len(proxy.completions) + 3, status(500)
    found = []
    with pytest.raises(EngineError, match="after 1 try;"):
        for completion in lm.generate([text_ids(text) for text in TEXTS], GREEDY):
            found.append(completion.prompt)
    assert len(found) == 3


def test_nobody_is_there(opened):
    with pytest.raises(EngineError, match=r"no connection, or a broken one: .*after 3 tries"):
        opened("http://127.0.0.1:9/v1", max_retries=2)


def test_a_model_that_the_server_has_not(proxy, opened):
    proxy.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(EngineError, match="no model 'stories': its models are 'a', 'b'"):
        opened(proxy.url)


def test_a_server_without_a_list_of_models(url, proxy, opened):
    proxy.upstream = url + "/none"  # /v1/none/models
    with pytest.raises(EngineError, match="HTTP 404: Not Found at /completions"):
        opened(proxy.url)


@pytest.mark.parametrize("name", ["model", "system_fingerprint"])
def test_another_model_in_the_middle_is_an_error(proxy, opened, name):
    proxy.told = {name: "first"}
    lm = opened(proxy.url)
    assert lm.signature()[name] == "first"
    proxy.told = {name: "second"}
    with pytest.raises(
        EngineError, match=f"the server changed meanwhile: {name} was 'first', is 'second'"
    ):
        list(lm.generate([text_ids(TEXTS[0])], GREEDY))


def test_a_redirect_takes_no_key_along(url, proxy, opened):
    with servers.proxy(url) as elsewhere:
        lm = opened(proxy.url, key=KEY)
        proxy.lasting = status(307, location=f"{elsewhere.url}/completions")
        with pytest.raises(EngineError, match=r"redirects to .* which is not followed"):
            list(lm.generate([text_ids(TEXTS[0])], GREEDY))
        assert elsewhere.log == []
    assert {asked.headers.get("Authorization") for asked in proxy.completions} == {f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    argv = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run(["openssl", *argv, *subject], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")
    both = folder / "both.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return both


def test_a_certificate_that_nobody_vouches_for(url, opened, certificate, monkeypatch):
    with servers.proxy(url, certificate) as secure:
        with pytest.raises(EngineError) as err:
            opened(secure.url, key=KEY)
        assert "TLS: self-signed certificate: set SSL_CERT_FILE" in str(err.value)
        assert secure.log == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert opened(secure.url, key=KEY).facts()["prompts"] == "text"


# The key


@pytest.mark.parametrize("code", [400, 401, 403, 404, 418, 429, 500, 200])
def test_a_server_that_shows_the_key_shows_it_to_nobody(proxy, opened, code):
    lm = opened(proxy.url, key=KEY, max_retries=1)
    proxy.lasting = echo_headers(code)
    with pytest.raises(EngineError) as err:
        list(lm.generate([text_ids(TEXTS[0])], GREEDY))
    assert KEY not in repr(err.value) and "[key]" in str(err.value)
    assert KEY not in json.dumps(lm.facts())


def test_the_key_goes_nowhere_but_to_the_server_and_nothing_else_goes_with_it(
    proxy, opened, monkeypatch
):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "of-somebody-else")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    opened(proxy.url)
    sent = json.dumps([asked.headers for asked in proxy.log])
    assert "of-somebody-else" not in sent and "Authorization" not in sent
    opened(proxy.url, key=KEY)
    assert proxy.log[-1].headers["Authorization"] == f"Bearer {KEY}"


def test_speed_seen_from_outside(url, opened):
    lm = opened(url)
    prompts = [text_ids(f"{i} once upon a time") for i in range(6)]
    found = list(lm.requests(prompts, 5, at_once=2))
    assert len(found) == 6
    assert all(r.seconds > 0 and r.new_tokens == 5 and r.prompt_tokens > 3 for r in found)


def test_the_variable_of_the_key(url, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    endpoint = Endpoint(base_url=url, model=MODEL, api_key_env="MY_KEY")
    artifact = endpoint_artifact(endpoint, endpoint_model(endpoint, "m", "float32", tmp_path))
    for ask in (OpenAiEngine.reach, lambda a: OpenAiEngine.open(a, SETTINGS)):
        with pytest.raises(UsageError, match=r"the environment variable MY_KEY .* is not set"):
            ask(artifact)
    monkeypatch.setenv("MY_KEY", KEY)
    OpenAiEngine.reach(artifact)
    assert KEY not in json.dumps(artifact.to_json())

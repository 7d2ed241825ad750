"""The endpoint client against a real HTTP server: what is sent, what is understood, and every way to fail."""

from __future__ import annotations

import base64
import json
import time
from io import BytesIO

import numpy as np
import pytest
from chat_server import choice, said
from PIL import Image

from visfeedback import vlm
from visfeedback.plugins import InputError
from visfeedback.vlm import Question
from visfeedback.vlm.endpoint import EndpointSettings, is_endpoint, open_endpoint

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


def connect(server, sleeps: list[float] | None = None, cache=None, **settings):
    """Pauses are written down instead of slept."""
    kept = [] if sleeps is None else sleeps
    return open_endpoint(f"tiny@{server.url}", EndpointSettings(**settings), cache, sleep=kept.append)


def one_line(text: str) -> bool:
    return bool(text) and "\n" not in text


def test_what_is_sent(server):
    """Images as data URLs in their place among the texts, the system turn first, temperature 0."""
    model = connect(server)
    (reply,) = model.ask([Question(("Image 1:", IMAGE, "Which?"), system="Be brief.")], max_tokens=7)
    assert reply.text == "Yes"
    (sent,) = server.requests
    assert sent["model"] == "tiny"
    assert sent["max_tokens"] == 7
    assert sent["temperature"] == 0
    system, user = sent["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text"]
    kind, data = user["content"][1]["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.array(Image.open(BytesIO(base64.b64decode(data)))), np.array(IMAGE))


def test_only_pixels_are_sent(server):
    """Not the comment and the colour profile of the file."""
    image = IMAGE.copy()
    image.info = {"comment": b"private", "icc_profile": b"private" * 10}
    for form in ("png", "jpeg"):
        connect(server, image_format=form).ask([Question.about("?", image)])
        url = server.requests[-1]["messages"][0]["content"][0]["image_url"]["url"]
        assert b"private" not in base64.b64decode(url.partition(",")[2])


def test_jpeg_is_smaller(server):
    connect(server, image_format="jpeg").ask([Question.about("?", IMAGE)])
    url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).size == IMAGE.size


def test_replies_keep_the_order_of_the_questions_and_the_bound_on_requests(server):
    """The first question takes longest; no more than three are under way at once."""

    def answer(payload):
        number = int(said(payload))
        time.sleep(0.1 if number == 0 else 0.01)
        return choice(f"answer {number}")

    server.answer = answer
    replies = connect(server, concurrency=3).ask([Question.about(str(i)) for i in range(9)])
    assert [r.text for r in replies] == [f"answer {i}" for i in range(9)]
    assert 2 <= server.busiest <= 3


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(server, monkeypatch, tmp_path):
    """Not into the name, the origin, the cache or a message; OpenAI's key is not sent to other hosts."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    connect(server).ask([Question.about("hello")])
    assert "authorization" not in server.headers[0]
    monkeypatch.setenv("VISFEEDBACK_API_KEY", "sk-secret")
    model = connect(server, cache=tmp_path)
    model.ask([Question.about("hello")])
    assert server.headers[1]["authorization"] == "Bearer sk-secret"
    server.troubles = [(401, {}, {"error": {"message": "Incorrect API key provided: sk-secret"}})]
    with pytest.raises(InputError, match=r"401.*key is missing or wrong.*\*\*\*") as error:
        model.ask([Question.about("again")])
    server.troubles = [(400, {}, {"error": {"message": "sk-secret may not ask this"}})]
    (reply,) = model.ask([Question.about("this")])
    written = "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    for text in (str(error.value), reply.error, model.name, model.origin.model_dump_json(), written, repr(model)):
        assert "sk-secret" not in text
    assert one_line(reply.error)


def test_openai_gets_its_own_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.delenv("VISFEEDBACK_API_KEY", raising=False)
    assert open_endpoint("gpt@https://api.openai.com/v1")._key == "sk-openai"
    assert open_endpoint("gpt@https://openai.com.evil.example/v1")._key == ""
    assert open_endpoint("gpt@https://notopenai.com/v1")._key == ""


def test_passing_troubles_are_waited_out(server):
    """500, then 429 with Retry-After, then a page that is no JSON, then the answer: pauses 0.5, 7 and 2 (+-25%)."""
    server.troubles = [
        (500, {}, {"error": "boom"}),
        (429, {"retry-after": "7"}, {"error": {"message": "slow down"}}),
        (200, {}, b"<html>proxy</html>"),
    ]
    sleeps: list[float] = []
    (reply,) = connect(server, sleeps).ask([Question.about("hello")])
    assert reply.text == "Yes"
    assert len(server.requests) == 4
    assert sleeps[1] == 7
    assert 0.375 <= sleeps[0] <= 0.625
    assert 1.5 <= sleeps[2] <= 2.5


@pytest.mark.parametrize(("header", "most"), [("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("9999", 60.0), ("soon", 0.7)])
def test_retry_after_is_a_date_too_and_bounded(server, header, most):
    """A date in the past means now; more than a minute is cut; nonsense counts as absent."""
    server.troubles = [(503, {"retry-after": header}, {})]
    sleeps: list[float] = []
    connect(server, sleeps).ask([Question.about("hello")])
    assert 0 <= sleeps[0] <= most


def test_a_question_that_fails_does_not_stop_the_others(server):
    def answer(payload):
        return choice("", finish_reason="content_filter") if "bad" in said(payload) else choice("fine")

    server.answer = answer
    good, bad, fine = connect(server).ask([Question.about(t) for t in ("good", "bad", "fine")])
    assert (good.text, bad.text, fine.text) == ("fine", "", "fine")
    assert "refuses" in bad.error
    assert good.error == fine.error == ""


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ((500, {}, {"error": {"message": "out\nof memory"}}), "500: out of memory"),
        ((200, {}, b"{"), "no JSON"),
        ((200, {}, b"[1]"), "no JSON object"),
        ((413, {}, b"too large"), "413: too large"),
        ((400, {}, {"error": {"message": "image too big"}}), "400: image too big"),
        ((200, {}, {"choices": []}), "no choices"),
        ((200, {}, choice("")), "empty"),
        ((200, {}, choice("no", refusal="I cannot")), ""),
        (0.6, "no answer in time"),
    ],
)
def test_every_failure_of_one_question_is_one_line(server, trouble, says):
    server.troubles = [trouble] * 2
    (reply,) = connect(server, attempts=2, timeout=0.3).ask([Question.about("hello")])
    if says:
        assert says in reply.error
        assert one_line(reply.error)
    else:
        assert reply.text == "no"  # `refusal` belongs into the message, here it is outside


def test_a_refusal_is_no_answer(server):
    server.answer = lambda payload: {"choices": [{"message": {"content": None, "refusal": "I\ncannot"}}]}
    (reply,) = connect(server).ask([Question.about("hello")])
    assert reply.error == "the model refuses: I cannot"


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, {"error": {"message": "The model `tiny` does not exist."}}, r"404.*no such model.*does not exist"),
        (403, {"detail": "not yours"}, r"403.*not yours"),
        (429, {"error": {"code": "insufficient_quota", "message": "no credit"}}, "quota is used up"),
    ],
)
def test_a_wrong_setup_stops_at_once(server, status, body, says):
    """No repetition, no ten thousand failed images: the first such answer ends the run."""
    server.troubles = [(status, {}, body)] * 50
    with pytest.raises(InputError, match=says) as error:
        connect(server, concurrency=1).ask([Question.about(str(i)) for i in range(50)])
    assert len(server.requests) < 10
    assert one_line(str(error.value))


def test_a_host_that_answers_nobody_any_more_stops_the_run(server):
    """16 questions in a row without an answer; single ones, and questions that are refused, do not count."""
    server.answer = lambda payload: b"<html>bad gateway" if "x" in said(payload) else choice("fine")
    model = connect(server, attempts=1, concurrency=1)
    replies = model.ask([Question.about(text) for text in ["x"] * 15 + ["good"] + ["x"] * 15])
    assert [bool(reply.error) for reply in replies] == [True] * 15 + [False] + [True] * 15
    with pytest.raises(InputError, match=r"answered none of 16 questions \(the answer is no JSON") as error:
        model.ask([Question.about("x")] * 20)
    assert one_line(str(error.value))
    assert len(server.requests) < 36, "others were cancelled"
    server.answer = lambda payload: choice("", finish_reason="content_filter")
    assert all(reply.error for reply in model.ask([Question.about("hello")] * 20))


def test_no_server_is_one_line():
    model = open_endpoint("tiny@http://127.0.0.1:9/v1", EndpointSettings(attempts=2), sleep=lambda seconds: None)
    with pytest.raises(InputError, match=r"no connection to http://127\.0\.0\.1:9/v1/chat/completions") as error:
        model.ask([Question.about("hello")])
    assert one_line(str(error.value))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("tiny@http://me:secret@host/v1", "password"),
        ("tiny@http://host/v1?key=secret", "password or a query"),
        ("tiny@http://host:port/v1", "no URL"),
        ("tiny@http:///v1", "no host"),
    ],
)
def test_addresses_that_would_be_recorded_or_lead_nowhere(reference, says):
    assert is_endpoint(reference)
    with pytest.raises(InputError, match=says) as error:
        vlm.connect(reference)
    assert "secret" not in str(error.value)


def test_chances_add_up_spellings(server):
    """P(Yes) = .5 + .2 + .05 (case and spaces), P(No) = .1, and a word that is not listed has at most .02."""
    words = {"Yes": 0.5, " yes": 0.2, "No": 0.1, "YES": 0.05, "Maybe": 0.02}
    server.answer = lambda payload: choice("Yes", words)
    model = connect(server)
    (reply,) = model.probability([Question.about("?", IMAGE)], ["Yes", "No", "Never"])
    assert reply.chances == pytest.approx({"Yes": 0.75, "No": 0.1, "Never": 0.02})
    sent = server.requests[0]
    assert (sent["logprobs"], sent["top_logprobs"], sent["max_tokens"]) == (True, 20, 1)


def test_an_answer_outside_the_list_has_at_most_what_is_left(server):
    """The listed words hold .995 together, so .005 is left although the last of them has .015."""
    server.answer = lambda payload: choice("No", {"No": 0.98, "Not": 0.015})
    (reply,) = connect(server).probability([Question.about("?")], ["Yes", "No"])
    assert reply.chances == pytest.approx({"Yes": 0.005, "No": 0.98})


def test_no_answer_among_the_first_words_is_a_failure(server):
    server.answer = lambda payload: choice("<think>", {"<think>": 0.99, "Based": 0.01})
    (reply,) = connect(server).probability([Question.about("?")], ["Yes", "No"])
    assert reply.error == "neither 'Yes' nor 'No' among the 2 likeliest first words; it begins with '<think>'"


def test_missing_log_probabilities(server):
    """A server that ignores the wish, one that refuses it, and one that sends something else."""
    model = connect(server)
    with pytest.raises(InputError, match="sends no log-probabilities"):
        model.probability([Question.about("?")], ["Yes", "No"])
    server.troubles = [(400, {}, {"error": {"message": "logprobs are not supported"}})]
    with pytest.raises(InputError, match="gives no log-probabilities"):
        model.probability([Question.about("?")], ["Yes", "No"])
    server.answer = lambda payload: {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [{"x": 1}]}}]}
    (reply,) = model.probability([Question.about("?")], ["Yes", "No"])
    assert "cannot be read" in reply.error


@pytest.mark.parametrize(
    "entry", [{"token": "Yes", "logprob": float("nan")}, {"token": "Yes", "logprob": None}, [], "Yes"]
)
def test_log_probabilities_that_are_none_are_a_failure(server, entry):
    """Not a number is not certainty."""
    server.answer = lambda payload: {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [entry]}}]}
    (reply,) = connect(server).probability([Question.about("?")], ["Yes", "No"])
    assert "cannot be read" in reply.error


def test_tokens_that_are_no_text_are_no_answer(server):
    entry = {"token": 5, "logprob": -0.1}
    server.answer = lambda payload: {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [entry]}}]}
    (reply,) = connect(server).probability([Question.about("?")], ["Yes", "No"])
    assert reply.error.startswith("neither 'Yes' nor 'No'")


def test_a_host_with_other_words_for_things_is_understood(server):
    """Complaints about max_tokens, temperature and top_logprobs are each learnt once."""

    def answer(payload):
        return choice("Yes", {"Yes": 0.9})

    server.troubles = [
        (400, {}, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}),
        (400, {}, {"error": {"message": "Unsupported value: 'temperature' does not support 0."}}),
        (400, {}, {"error": {"message": "top_logprobs must be at most 5"}}),
    ]
    server.answer = answer
    model = connect(server)
    assert model.probability([Question.about("?")], ["Yes"])[0].chances["Yes"] == pytest.approx(0.9)
    model.ask([Question.about("?")])
    probability, ask = server.requests[3], server.requests[4]
    assert probability["top_logprobs"] == 5
    assert "temperature" not in ask
    assert "max_tokens" not in ask
    assert ask["max_completion_tokens"] == 512


def test_answers_are_kept_on_disk(server, tmp_path):
    """The same question is sent once, also by another client; with another image, text or limit it is another one."""
    server.answer = lambda payload: choice("Yes", {"Yes": 0.9, "No": 0.1})
    first = connect(server, cache=tmp_path)
    replies = first.ask([Question.about("a", IMAGE), Question.about("b", IMAGE)])
    assert connect(server, cache=tmp_path).ask([Question.about("a", IMAGE), Question.about("b", IMAGE)]) == replies
    assert len(server.requests) == 2
    first.probability([Question.about("a", IMAGE)], ["Yes"])
    first.ask([Question.about("a", IMAGE.transpose(Image.Transpose.FLIP_LEFT_RIGHT))])
    first.ask([Question.about("a", IMAGE)], max_tokens=3)
    assert len(server.requests) == 5


def test_failures_are_not_kept_and_damaged_files_are_asked_again(server, tmp_path):
    model = connect(server, cache=tmp_path, attempts=1)
    server.troubles = [(500, {}, {})]
    assert model.ask([Question.about("a")])[0].error
    assert not list(tmp_path.rglob("*.json"))
    assert model.ask([Question.about("a")])[0].text == "Yes"
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:10])
    assert model.ask([Question.about("a")])[0].text == "Yes"
    assert json.loads(file.read_text())["message"]["content"] == "Yes"


def test_connect_takes_the_folder_of_answers_from_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("VISFEEDBACK_VLM_CACHE", str(tmp_path))
    model = vlm.connect(f"org/tiny@{server.url}/chat/completions")
    assert model.ask([Question.about("a")])[0].text == "Yes"
    assert model.name == f"org/tiny@{server.url}"
    assert server.requests[0]["model"] == "org/tiny"
    assert list(tmp_path.rglob("*.json"))


def test_one_image_of_many_questions_is_encoded_once(server, monkeypatch):
    from visfeedback.vlm import endpoint

    encoded = []
    original = endpoint.data_url
    monkeypatch.setattr(endpoint, "data_url", lambda image, form: encoded.append(image) or original(image, form))
    connect(server).ask([Question.about(str(i), IMAGE) for i in range(5)])
    assert len(encoded) == 1


def test_nothing_is_asked(server):
    assert connect(server).ask([]) == []
    assert server.requests == []

"""The page with a password, over HTTP."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from importlib.util import find_spec
from typing import Any

import pytest

from promptreid.demo import request_checks
from promptreid.demo.sources import Opened

if find_spec("gradio") is None:  # imported by those tests alone that run
    pytest.skip("gradio is not installed", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # gradio's loops and sockets


@pytest.fixture(scope="module")
def locked_page(start_here: Callable[..., Any], mine: Opened) -> str:
    return start_here(mine.gallery, auth=("anna", "correct horse")).url


class Visitor:
    """Someone with a browser's memory for cookies."""

    def __init__(self, url: str) -> None:
        self.url = url
        proxies = urllib.request.ProxyHandler({})
        self.opener = urllib.request.build_opener(proxies, urllib.request.HTTPCookieProcessor(CookieJar()))

    def ask(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> int:
        headers = {"Content-Type": content_type} if body is not None else {}
        try:
            with self.opener.open(urllib.request.Request(f"{self.url}{path}", data=body, headers=headers)) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def log_in(self, password: str) -> int:
        form = urllib.parse.urlencode({"username": "anna", "password": password}).encode()
        return self.ask("login", form, "application/x-www-form-urlencoded")


def ask_all(visitor: Visitor, called: int) -> list[int]:
    question = json.dumps({"data": [], "fn_index": called, "session_hash": "a"}).encode()
    return [visitor.ask("config"), visitor.ask("gradio_api/queue/join", question)]


def test_page_with_a_password_answers_only_who_knows_it(locked_page: str) -> None:
    visitor = Visitor(locked_page)
    assert visitor.ask("") == 200  # the form to log in
    assert ask_all(visitor, 0) == [401, 401]
    assert visitor.ask("gradio_api/queue/data?session_hash=a") == 401
    assert visitor.log_in("wrong") == 400
    assert ask_all(visitor, 0) == [401, 401]
    assert visitor.log_in("correct horse") == 200
    assert visitor.ask("config") == 200
    assert ask_all(Visitor(locked_page), 0) == [401, 401]  # nobody else is let in with them


def test_page_with_a_password_tells_strangers_nothing_of_the_gallery(locked_page: str) -> None:
    with urllib.request.urlopen(locked_page) as answer:
        page = answer.read().decode()
    assert "mine" not in page
    assert "hall" not in page


def test_page_with_a_password_bounds_how_often_one_may_guess(locked_page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_checks, "_MAX_FAILED_LOGINS", 3)
    visitor = Visitor(locked_page)
    monkeypatch.setattr(request_checks, "_FAILED_LOGIN_SECONDS", 0.0)
    visitor.log_in("forget what was before")
    monkeypatch.setattr(request_checks, "_FAILED_LOGIN_SECONDS", 60.0)
    answers = [visitor.log_in(str(guess)) for guess in range(5)]
    assert answers.count(429) >= 2
    assert answers[-1] == visitor.log_in("correct horse") == 429
    monkeypatch.setattr(request_checks, "_FAILED_LOGIN_SECONDS", 0.0)
    assert visitor.log_in("correct horse") == 200

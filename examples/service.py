"""Serve a gallery over HTTP: the model and the gallery are loaded once, a request may hold many sentences.

    pip install promptreid "fastapi>=0.115" "uvicorn>=0.30"
    promptreid try "a man in a green jacket" && promptreid index crops --output gallery
    python examples/service.py

    curl "localhost:8000/search?sentence=a+man+in+a+green+jacket&k=3"
    curl localhost:8000/search --json '{"sentences": ["a man in a green jacket", "a woman in a red coat"], "k": 3}'

The settings are environment variables. Anyone who can reach the service can search the gallery, so it listens only on
this computer, and on any other address it requires SERVICE_TOKEN, which clients send as "Authorization: Bearer TOKEN".
Read docs/responsible_use.md before you serve images of real people.
"""

import json
import os
import secrets
from threading import Lock
from typing import Annotated, Any

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Query, Request
    from fastapi.encoders import jsonable_encoder
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, RedirectResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
except ModuleNotFoundError as missing:
    raise SystemExit(f'error: no {missing.name} is installed: pip install "fastapi>=0.115" "uvicorn>=0.30"') from None
from pydantic import BaseModel, ConfigDict, Field

from promptreid import Gallery, load_prompts
from promptreid.defaults import is_gallery, is_store
from promptreid.errors import CheckpointError, PromptReidError
from promptreid.towers.tiny import tiny_prompts

GALLERY = os.environ.get("SERVICE_GALLERY", "gallery")
MODEL = os.environ.get("SERVICE_MODEL") or tiny_prompts()  # a folder of prompts, or "user/name" on the Hub
HOST = os.environ.get("SERVICE_HOST", "127.0.0.1")
PORT = os.environ.get("SERVICE_PORT", "8000")
TOKEN = os.environ.get("SERVICE_TOKEN", "")
MOST_SENTENCES, MOST_LETTERS, MOST_HITS = 256, 1000, 100

Sentence = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]
Hits = Annotated[int, Field(ge=1, le=MOST_HITS)]


class Asked(BaseModel):
    """What every search takes; an unknown name, such as one with a typing error, is refused."""

    model_config = ConfigDict(extra="forbid")

    k: Hits = 10
    threshold: float | None = None


class OneSearch(Asked):
    """The parameters of a search for one sentence."""

    sentence: Sentence


class Search(Asked):
    """The body of a search."""

    sentences: list[Sentence] = Field(min_length=1, max_length=MOST_SENTENCES)
    where: dict[str, Any] | None = Field(None, description='metadata to filter by, such as {"folder": "imgs/cam_a"}')


class Ascii(JSONResponse):
    """JSON in ASCII: a file's name may hold bytes that are not text, which UTF-8 cannot hold."""

    def render(self, content: Any) -> bytes:
        """The response's bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def refused(_: Request, error: Any) -> Ascii:
    """The response to a request that is refused, which may have what is not UTF-8 in it too."""
    if isinstance(error, HTTPException):
        return Ascii({"detail": error.detail}, error.status_code, error.headers)
    # Without the input, which may be a number that JSON has not, such as NaN.
    faults = [{name: fault[name] for name in ("type", "loc", "msg")} for fault in error.errors()]
    return Ascii({"detail": jsonable_encoder(faults)}, 422)


def refuse_parameters(request: Request) -> None:
    """Refuse parameters in an address that takes none."""
    if request.query_params:
        raise HTTPException(422, f"this address takes no parameters, and has {', '.join(request.query_params)}")


def make_app(gallery: Gallery, *, token: str = "") -> FastAPI:
    """The service of a gallery whose model is loaded.

    Args:
        gallery: What is searched.
        token: What requests must send; without one everybody may search.
    """

    def check_token(
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        if token and not secrets.compare_digest((sent.credentials if sent else "").encode(), token.encode()):
            raise HTTPException(401, "send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(title="promptreid", dependencies=[Depends(check_token)])
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, refused)
    one_at_a_time = Lock()  # a search has all cores; two side by side would both be slower

    def answer(search: Search) -> Ascii:
        try:
            with one_at_a_time:  # all sentences are encoded as one batch
                found = gallery.search(search.sentences, search.k, threshold=search.threshold, where=search.where)
        except CheckpointError:  # the gallery is damaged: not the client's fault
            raise
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
        pairs = zip(search.sentences, found, strict=True)
        return Ascii({"results": [{"query": query, "hits": [hit.as_dict() for hit in hits]} for query, hits in pairs]})

    # For those who open the address in a browser: the page of all requests.
    app.add_route("/", lambda _: RedirectResponse("docs"), include_in_schema=False)

    # Functions without `async` run in threads, so that the service answers /health during a search.
    @app.get("/health")
    def health() -> dict[str, int]:
        return {"images": len(gallery)}

    @app.get("/search")
    def search_one(asked: Annotated[OneSearch, Query()]) -> Ascii:
        return answer(Search(sentences=[asked.sentence], k=asked.k, threshold=asked.threshold))

    @app.post("/search", dependencies=[Depends(refuse_parameters)])
    def search_many(search: Search) -> Ascii:
        return answer(search)

    return app


def main() -> None:
    """Load once, try once, serve.

    Raises:
        SystemExit: It cannot be served; one line says why, and what to do.
    """
    if HOST not in ("127.0.0.1", "localhost", "::1") and not TOKEN:
        raise SystemExit(f"error: SERVICE_HOST is {HOST}, which others can reach: set SERVICE_TOKEN to a long secret")
    if not (TOKEN.isascii() and TOKEN.isprintable()) or TOKEN.strip() != TOKEN:
        advice = "set it to ASCII letters, digits and signs, without spaces around them"
        raise SystemExit(f"error: SERVICE_TOKEN holds what a header cannot carry; {advice}")
    if not PORT.isdecimal() or not 0 < int(PORT) < 65536:
        raise SystemExit(f"error: SERVICE_PORT is {PORT}, expected 1 to 65535")
    if is_store(GALLERY) and not is_gallery(GALLERY):
        raise SystemExit(f"error: {GALLERY} is a store, and this serves a gallery: set SERVICE_GALLERY to one")
    if not is_gallery(GALLERY):
        advice = f"make one: promptreid index CROPS --output {GALLERY}, or set SERVICE_GALLERY to another"
        raise SystemExit(f"error: there is no gallery in {GALLERY}; {advice}")
    print(f"loading {MODEL} and {GALLERY}", flush=True)  # which takes seconds
    try:
        gallery = Gallery.load(GALLERY, load_prompts(MODEL))
    except (PromptReidError, OSError, ValueError) as error:
        advice = f"SERVICE_MODEL must be the model that made {GALLERY}, a folder or USER/NAME"
        raise SystemExit(f"error: {error}; {advice}") from None
    try:
        gallery.search("a person", k=1)  # the first search is slower than the others
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        uvicorn.run(make_app(gallery, token=TOKEN), host=HOST, port=int(PORT))
    except SystemExit:  # uvicorn has printed why
        raise SystemExit(f"error: it cannot listen on {HOST}:{PORT}; set SERVICE_PORT to a free port") from None


if __name__ == "__main__":
    main()

"""The service of examples/service.py, asked as a client asks it; FastAPI comes with the extra `demo`."""

import importlib.util
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip, load_prompts
from promptreid.errors import CheckpointError
from promptreid.towers.tiny import tiny_prompts

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

ROOT = Path(__file__).parents[2]
SENTENCES = ["a man in a green jacket", "a woman in a red coat"]


@pytest.fixture(scope="module")
def gallery(split):
    return Gallery.build(load_prompts(tiny_prompts()), split, progress=False)


@pytest.fixture(scope="module")
def service():
    spec = importlib.util.spec_from_file_location("service", ROOT / "examples" / "service.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["service"] = module  # pydantic looks its annotations up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["service"]


@pytest.fixture(scope="module")
def saved(gallery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "gallery"
    gallery.save(folder)
    return str(folder)


@pytest.fixture
def client(service, gallery):
    from starlette.testclient import TestClient

    with TestClient(service.make_app(gallery), raise_server_exceptions=False) as client:
        yield client


def test_one_sentence_finds_what_the_gallery_finds(client, gallery):
    answer = client.get("/search", params={"sentence": SENTENCES[0], "k": 3})
    assert answer.status_code == 200
    expected = [hit.as_dict() for hit in gallery.search(SENTENCES[0], k=3)]
    assert answer.json() == {"results": [{"query": SENTENCES[0], "hits": expected}]}


def test_many_sentences_are_encoded_as_one_batch(client, gallery, monkeypatch):
    batches = []
    searched = gallery.search
    monkeypatch.setattr(
        gallery, "search", lambda query, *rest, **more: batches.append(query) or searched(query, *rest, **more)
    )
    answer = client.post("/search", json={"sentences": SENTENCES, "k": 2, "where": {"person_id": [1, 2, 3, 4, 5]}})
    assert answer.status_code == 200, answer.text
    assert batches == [SENTENCES]
    results = answer.json()["results"]
    assert [result["query"] for result in results] == SENTENCES
    assert all(hit["metadata"]["person_id"] in range(1, 6) for result in results for hit in result["hits"])


def test_threshold_that_nothing_reaches_gives_no_hits(client):
    answer = client.post("/search", json={"sentences": SENTENCES, "threshold": 0.999})
    assert [result["hits"] for result in answer.json()["results"]] == [[], []]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"sentences": []}, "at least 1"),
        ({"sentences": ["a man"] * 257}, "at most 256"),
        ({"sentences": ["a" * 1001]}, "at most 1000"),
        ({"sentences": ["  "]}, "empty"),
        ({"sentences": ["a man"], "k": 0}, "greater than or equal to 1"),
        ({"sentences": ["a man"], "where": {"camera": 3}}, "camera"),
        ({"sentences": ["a man"], "limit": 0.99}, "limit"),
        ({"sentences": ["a man"], "were": {"person_id": 1}}, "were"),
    ],
)
def test_mistake_of_the_client_is_422_and_says_what(client, body, said):
    answer = client.post("/search", json=body)
    assert answer.status_code == 422
    assert said in answer.text


@pytest.mark.parametrize("name", ["K", "were", "where", "limit"])
def test_parameter_that_is_unknown_or_would_do_nothing_is_422(client, name):
    answer = client.get("/search", params={"sentence": "a man", name: "1"})
    assert (answer.status_code, name in answer.text) == (422, True)
    asked = client.post("/search", params={"k": 1}, json={"sentences": ["a man"]})
    assert asked.status_code == 422
    assert asked.json()["detail"] == "this address takes no parameters, and has k"


@pytest.mark.parametrize("body", [b'{"sentences": ["a"], "k": NaN}', b'{"sentences": ["a"], "x": 1e999}'])
def test_number_that_json_has_not_is_422(service, gallery, body):
    from starlette.testclient import TestClient

    with TestClient(service.make_app(gallery), raise_server_exceptions=False) as client:
        answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "sentences" not in answer.text  # the fault alone


def test_names_that_are_not_utf_8_are_answered_in_ascii(service, gallery):
    from starlette.testclient import TestClient

    odd = Gallery(gallery.model, ["br\udcfc.jpg"], gallery.features[:1], metadata=[{"folder": "c\udce9"}])
    with TestClient(service.make_app(odd), raise_server_exceptions=False) as client:
        answer = client.get("/search", params={"sentence": "a man"})
        assert (answer.status_code, b"br\\udcfc.jpg" in answer.content) == (200, True)
        (hit,) = answer.json()["results"][0]["hits"]
        assert (hit["path"], hit["metadata"]) == ("br\udcfc.jpg", {"folder": "c\udce9"})
        for body in (b'{"sentences": ["a \\ud800"]}', b'{"sentences": ["a"], "where": {"folder": "\\ud800"}}'):
            answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.content.isascii()) == (422, True), answer.content
        assert b"ud800" in answer.content  # which the second is told


def test_damaged_gallery_is_no_mistake_of_the_client(client, gallery, monkeypatch):
    def damaged(*_, **__):
        raise CheckpointError("features are damaged")

    monkeypatch.setattr(gallery, "search", damaged)
    assert client.post("/search", json={"sentences": SENTENCES}).status_code == 500


def test_address_in_a_browser_leads_to_the_page_of_requests(client):
    answer = client.get("/")
    assert (answer.status_code, answer.url.path) == (200, "/docs")
    assert "swagger" in answer.text
    assert "HTTPBearer" in client.get("/openapi.json").json()["components"]["securitySchemes"]  # its button Authorize


def test_health_counts_the_images(client, gallery):
    for address in ("/health", "/health?_=1"):  # as monitors ask, past a cache
        assert client.get(address).json() == {"images": len(gallery)}


@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "sécret".encode()}])
def test_request_without_the_token_is_refused(service, gallery, sent):
    from starlette.testclient import TestClient

    client = TestClient(service.make_app(gallery, token="secret"))
    refused = client.get("/search", params={"sentence": "a man"}, headers=sent)
    assert refused.status_code == 401
    assert "Bearer" in refused.json()["detail"]
    accepted = client.get("/search", params={"sentence": "a man"}, headers={"Authorization": "Bearer secret"})
    assert accepted.status_code == 200


def test_address_that_others_reach_needs_a_token(service, monkeypatch):
    monkeypatch.setattr(service, "HOST", "0.0.0.0")
    with pytest.raises(SystemExit, match="set SERVICE_TOKEN"):
        service.main()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"GALLERY": "none"}, "no gallery in none; make one: promptreid index CROPS --output none"),
        ({"TOKEN": "sécret"}, "SERVICE_TOKEN holds what a header cannot carry; set it to ASCII"),
        ({"TOKEN": "secret\n"}, "SERVICE_TOKEN holds what a header cannot carry; set it to ASCII"),
        ({"PORT": "80a"}, "SERVICE_PORT is 80a, expected 1 to 65535"),
        ({"PORT": "80000"}, "SERVICE_PORT is 80000"),
        ({"MODEL": "no-such-folder"}, "SERVICE_MODEL must be the model that made "),
    ],
)
def test_what_cannot_be_served_is_one_line(service, saved, tmp_path, monkeypatch, settings, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(service, "GALLERY", saved)
    for name, value in settings.items():
        monkeypatch.setattr(service, name, value)
    with pytest.raises(SystemExit, match=re.escape(words)):
        service.main()


def test_store_is_not_served(service, tmp_path, monkeypatch):
    (tmp_path / "images.lance" / "_versions").mkdir(parents=True)
    monkeypatch.setattr(service, "GALLERY", str(tmp_path))
    with pytest.raises(SystemExit, match="is a store, and this serves a gallery: set SERVICE_GALLERY to one"):
        service.main()
    (tmp_path / "gallery.json").touch()  # which an earlier version let be in one folder with a store
    with pytest.raises(SystemExit, match="SERVICE_MODEL must be the model that made"):
        service.main()


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    spec = importlib.util.spec_from_file_location("service_without", ROOT / "examples" / "service.py")
    with pytest.raises(SystemExit, match=r"no uvicorn is installed: pip install .fastapi"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_other_model_than_the_gallerys_is_one_line(service, saved, monkeypatch):
    monkeypatch.setattr(service, "GALLERY", saved)
    monkeypatch.setattr(service, "load_prompts", lambda _: load_bare())
    words = "encoded by another model.*SERVICE_MODEL must be the model that made "
    with pytest.raises(SystemExit, match=words):
        service.main()


def load_bare():
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    return PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0)).eval()


def test_port_that_is_taken_is_one_line(service, saved, monkeypatch):
    monkeypatch.setattr(service, "GALLERY", saved)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(service, "PORT", str(taken.getsockname()[1]))
        with pytest.raises(SystemExit, match=r"cannot listen on 127\.0\.0\.1:[0-9]+; set SERVICE_PORT to a free port"):
            service.main()


def test_main_loads_once_and_serves(service, gallery, tmp_path, monkeypatch):
    gallery.save(tmp_path / "gallery")
    served = []
    monkeypatch.setattr(service, "GALLERY", str(tmp_path / "gallery"))
    monkeypatch.setattr(service.uvicorn, "run", lambda app, **where: served.append((app.title, where)))
    service.main()
    assert served == [("promptreid", {"host": "127.0.0.1", "port": 8000})]


DOCKERFILE = (ROOT / "examples" / "service.Dockerfile").read_text(encoding="utf-8")


def test_image_gets_torch_for_the_cpu_and_the_packages_that_the_program_names():
    assert "--torch-backend cpu" in DOCKERFILE
    program = (ROOT / "examples" / "service.py").read_text(encoding="utf-8")
    for requirement in re.findall(r'"((?:fastapi|uvicorn)>=[\d.]+)"', program):
        assert f'"{requirement}"' in DOCKERFILE
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["1000"]
    ports = re.findall(r"8000", program)
    assert ports
    assert "EXPOSE 8000" in DOCKERFILE


@pytest.mark.slow
def test_files_that_the_image_copies_are_enough_to_build_the_wheel(tmp_path):
    for files, target in re.findall(r"^COPY (.+) (\S+)$", DOCKERFILE, re.MULTILINE):
        for name in files.split():
            source, folder = ROOT / name, tmp_path / target.lstrip("/")
            if source.is_dir():
                shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tmp_path / "src"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("promptreid-*.whl"))
    assert (tmp_path / "app" / "service.py").is_file()

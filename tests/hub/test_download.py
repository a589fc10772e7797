"""Load with the real huggingface_hub client from the tests' own Hub: what goes well, and what goes wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from promptreid import PromptedCLIP, load_clip, load_prompts
from promptreid.errors import CheckpointError, HubError
from promptreid.hub.prompt_files import write_prompt_files
from promptreid.hub.repository import is_not_found
from promptreid.model.publishing import push_prompts

ALICE, BOB = "hf_aliceAliceAlice0", "hf_bobBobBobBobBob1"
# huggingface_hub 2.4 uploads in a way that its own HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def pushed(hub, model):
    push_prompts(model, "alice/m", token=ALICE, private=False)
    hub.log.clear()
    return hub.repos["alice/m"]


@pytest.fixture
def pushed_tuned(hub, tuned):
    push_prompts(tuned, "alice/t", token=ALICE, private=False)
    hub.log.clear()
    return hub.repos["alice/t"]


def requests(hub, method: str | None = None) -> list[str]:
    return [path for verb, path, _ in hub.log if method in (None, verb)]


def go_offline(hub) -> None:
    hub.faults.append(lambda *_: "close")


def forbid_the_hub(monkeypatch) -> None:
    """As if HF_HUB_OFFLINE had been set from the start; before 1.0 each session remembers what it was when it began."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    reset = getattr(huggingface_hub.utils, "reset_sessions", None)
    if reset is not None:
        reset()


def test_public_repository_loads_without_a_token(hub, pushed, model, score):
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert all("Authorization" not in headers for _, _, headers in hub.log)


def test_prompts_load_into_a_model_and_its_encoders_are_not_downloaded(hub, pushed_tuned, tuned, score):
    expected = score(tuned)
    clip = tuned.detach()
    loaded = load_prompts("alice/t", model=clip)
    assert torch.equal(score(loaded), expected)
    assert not any("open_clip_model" in path for path in requests(hub))


def test_branch_tag_commit_and_main_load_each_their_own(hub, pushed, model, tuned, score):
    api = huggingface_hub.HfApi(token=ALICE)
    first = pushed.refs["refs/heads/main"]
    api.create_tag("alice/m", tag="v1")
    push_prompts(tuned, "alice/m", token=ALICE, private=False)
    push_prompts(model, "alice/m", token=ALICE, private=False, revision="old")
    for revision in ("v1", first, "old"):
        assert torch.equal(score(load_prompts("alice/m", revision=revision)), score(model))
    for revision in (None, "main"):
        assert torch.equal(score(load_prompts("alice/m", revision=revision)), score(tuned))


def test_everything_is_downloaded_from_one_commit(hub, pushed, model, tuned, score):
    """Somebody pushes between the first file and the others."""
    later = [True]

    def push_meanwhile(_: str, path: str) -> None:
        if "paths-info" in path and later:
            later.clear()
            push_prompts(tuned, "alice/m", token=ALICE, private=False)

    hub.faults.append(push_meanwhile)
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert later == []


def test_commit_in_the_cache_needs_no_network(hub, pushed, model, score):
    commit = pushed.refs["refs/heads/main"]
    load_prompts("alice/m", revision=commit)
    hub.log.clear()
    assert torch.equal(score(load_prompts("alice/m", revision=commit)), score(model))
    assert hub.log == []


def test_cache_is_used_offline(hub, pushed, model, score, monkeypatch):
    load_prompts("alice/m")
    hub.log.clear()
    assert torch.equal(score(load_prompts("alice/m", local_files_only=True)), score(model))
    assert hub.log == []
    go_offline(hub)
    with pytest.warns(UserWarning, match="the Hub cannot be reached; alice/m is taken from the cache"):
        assert torch.equal(score(load_prompts("alice/m")), score(model))
    forbid_the_hub(monkeypatch)
    hub.log.clear()
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert hub.log == []


def test_nothing_in_the_cache_and_no_network_is_explained(hub, pushed, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(HubError, match=r"prompt_config\.json of alice/m is not in the cache"):
        load_prompts("alice/m", local_files_only=True)
    go_offline(hub)
    with pytest.raises(HubError, match=r"the Hub cannot be reached for alice/m .*check the network"):
        load_prompts("alice/m")
    forbid_the_hub(monkeypatch)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*; there is no folder alice/m here either$"):
        load_prompts("alice/m")


def test_half_of_a_repository_in_the_cache_is_completed_or_refused(hub, pushed_tuned, tuned, score):
    expected = score(tuned)
    load_prompts("alice/t", model=tuned.detach())
    with pytest.raises(HubError, match=r"open_clip_\w+\.\w+ of alice/t.*is not in the cache"):
        load_prompts("alice/t", local_files_only=True)
    assert torch.equal(score(load_prompts("alice/t")), expected)


def test_cache_dir_is_used(hub, pushed, tmp_path, cache):
    load_prompts("alice/m", cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "models--alice--m").is_dir()
    assert not (cache / "models--alice--m").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"repo_or_directory": "alice/none"}, "there is no repository alice/none, or none that you may see"),
        ({"revision": "none"}, "alice/m has no branch, tag or commit 'none'; leave revision out"),
        ({"revision": "f" * 40}, "alice/m has no branch, tag or commit 'f+'"),
        ({"token": "hf_wrongWrongWrong00"}, "status 401: the token is missing, wrong or expired"),
    ],
)
def test_what_is_not_there_is_named(hub, pushed, arguments, words):
    with pytest.raises(HubError, match=words):
        load_prompts(**{"repo_or_directory": "alice/m", **arguments})


def test_private_repository_is_for_its_owner(hub, model, score):
    push_prompts(model, "alice/p", token=ALICE)
    assert torch.equal(score(load_prompts("alice/p", token=ALICE)), score(model))
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    for token in (None, BOB, False):
        with pytest.raises(HubError, match="no repository alice/p, or none that you may see"):
            load_prompts("alice/p", token=token)


def test_other_kind_of_repository_is_refused(hub, pushed):
    commit = pushed.find("main")
    pushed.refs["refs/heads/main"] = pushed.commit(commit.oid, {"model.bin": b"x"}, "not ours")
    with pytest.raises(HubError, match=r"no file prompt_config\.json; it is not a repository that push_prompts"):
        load_prompts("alice/m")


def test_file_that_is_missing_is_named(hub, pushed):
    commit = pushed.find("main")
    tree = {name: content for name, content in commit.tree.items() if name != "prompts.safetensors"}
    pushed.refs["refs/heads/main"] = pushed.commit(commit.oid, tree, "half")
    with pytest.raises(HubError, match=r"has no file prompts\.safetensors"):
        load_prompts("alice/m")


def put(repo, name: str, content: bytes) -> None:
    commit = repo.find("main")
    repo.refs["refs/heads/main"] = repo.commit(commit.oid, {**commit.tree, name: content}, "changed")


def test_other_prompts_than_described_are_refused_unread(hub, pushed):
    content = bytearray(pushed.files()["prompts.safetensors"])
    content[-1] ^= 1
    put(pushed, "prompts.safetensors", bytes(content))
    with pytest.raises(CheckpointError, match=r"is not the file that its prompt_config\.json describes"):
        load_prompts("alice/m")
    assert "/_lfs/" not in " ".join(requests(hub))


def test_file_that_is_too_long_is_refused_unread(hub, pushed):
    put(pushed, "prompts.safetensors", bytes(2**20))
    with pytest.raises(CheckpointError, match="has 1048576 bytes, expected at most"):
        load_prompts("alice/m")
    put(pushed, "prompt_config.json", b" " * 2**17)
    with pytest.raises(CheckpointError, match=r"prompt_config\.json of alice/m has 131072 bytes"):
        load_prompts("alice/m")
    assert "GET" not in {verb for verb, path, _ in hub.log if "prompts.safetensors" in path}


def test_wrong_bytes_are_fetched_again_once_and_then_refused(hub, pushed, model, score):
    right = pushed.files()["prompts.safetensors"]
    wrong = right[:-1] + bytes([right[-1] ^ 1])
    left = [1]

    def lie(method: str, path: str) -> object:
        if "/_lfs/" in path and method == "GET" and left[0]:
            left[0] -= 1
            return wrong
        return None

    hub.faults.append(lie)
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert left == [0]
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    left[0] = 100
    with pytest.raises(CheckpointError, match=r"prompts\.safetensors is corrupt: its SHA-256"):
        load_prompts("alice/m")
    assert left[0] == 98


def test_damaged_cache_is_mended(hub, pushed, model, score, cache):
    load_prompts("alice/m")
    (path,) = cache.glob("models--alice--m/snapshots/*/prompts.safetensors")
    path.resolve().write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="is corrupt"):
        load_prompts("alice/m", local_files_only=True)
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert torch.equal(score(load_prompts("alice/m", local_files_only=True)), score(model))


def cut(content: bytes) -> bytes:
    return content[:100]


def change_a_digit(content: bytes) -> bytes:
    return content.replace(b"2", b"3", 1)


def lengthen(content: bytes) -> bytes:
    return content + b" " * 10**5


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("harm", [cut, change_a_digit, lengthen, lambda _: b"", lambda _: b"null"])
@pytest.mark.parametrize("name", ["prompt_config.json", "prompts.safetensors"])
def test_any_damage_to_the_cache_is_mended(hub, pushed, model, score, cache, name, harm, pinned):
    commit = load_prompts("alice/m").commit
    (path,) = cache.glob(f"models--alice--m/snapshots/*/{name}")
    blob, content = path.resolve(), path.read_bytes()
    blob.write_bytes(harm(content))
    with pytest.raises(CheckpointError):
        load_prompts("alice/m", local_files_only=True)
    assert blob.read_bytes() == harm(content)
    assert torch.equal(score(load_prompts("alice/m", revision=commit if pinned else None)), score(model))
    assert path.read_bytes() == content


def test_manifest_that_is_damaged_on_the_hub_is_fetched_twice_and_then_refused(hub, pushed):
    put(pushed, "prompt_config.json", b"{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load_prompts("alice/m")
    assert len([path for path in requests(hub, "GET") if path.endswith("prompt_config.json")]) == 2


def is_weights(hub, method: str, path: str) -> bool:
    """Whether a request is for the content of the large file."""
    return method == "GET" and "/_lfs/" in path and len(hub.large.get(path[6:70], b"")) > 10**7


def test_dropped_connection_is_resumed(hub, pushed_tuned, tuned, score, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    left = [3]

    def drop(method: str, path: str) -> object:
        if is_weights(hub, method, path) and left[0]:
            left[0] -= 1
            return "drop"
        return None

    hub.faults.append(drop)
    assert torch.equal(score(load_prompts("alice/t")), score(tuned))
    assert left == [0]
    resumed = [headers["Range"] for _, path, headers in hub.log if "/_lfs/" in path and "Range" in headers]
    # The client writes blocks of 10 MB, and resumes after the last whole one.
    assert resumed[:2] == ["bytes=10485760-", "bytes=20971520-"]


def test_half_a_download_is_never_used(hub, pushed_tuned, tuned, score, cache, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    asked = [0]

    def break_off(method: str, path: str) -> object:
        if not is_weights(hub, method, path):
            return None
        asked[0] += 1
        return "drop" if asked[0] == 1 else "close"

    hub.faults.append(break_off)
    with pytest.raises(HubError, match=r"cannot be reached for alice/t at revision"):
        load_prompts("alice/t")
    assert asked[0] > 3
    assert not list(cache.glob("models--alice--t/snapshots/*/open_clip_model.safetensors"))
    hub.faults.clear()
    assert torch.equal(score(load_prompts("alice/t")), score(tuned))


@pytest.mark.parametrize("fault", [500, 503, 429, "close"])
def test_passing_fault_is_overcome(hub, pushed, model, score, fault, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    seen: dict[str, int] = {}

    def fail_at_first(_: str, path: str) -> object:
        seen[path] = seen.get(path, 0) + 1
        # A file is asked for four times, and a try goes to the Hub and then to its store: three faults in all.
        return fault if seen[path] <= (1 if path.startswith("/_lfs/") else 2) else None

    hub.faults.append(fail_at_first)
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert max(seen.values()) >= 3


def test_waits_grow(hub, pushed, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("promptreid.hub.repository._FIRST_WAIT_SECONDS", 0.5)
    monkeypatch.setattr("promptreid.hub.repository.time.sleep", waits.append)
    hub.faults.append(lambda *_: 500)
    with pytest.raises(HubError, match="HTTP status 500: try again later"):
        load_prompts("alice/m")
    ours = waits[-3:]
    assert [0.5 <= ours[0] <= 0.6, 1 <= ours[1] <= 1.2, 2 <= ours[2] <= 2.4] == [True] * 3


def test_full_disk_is_explained(hub, pushed, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("promptreid.hub.transfer.hf_hub_download", fail)
    with pytest.raises(HubError, match=r"no space left on the disk for prompt_config\.json of alice/m; free some"):
        load_prompts("alice/m")


@pytest.mark.parametrize("fault", [None, "close"])
def test_base_that_cannot_be_downloaded_is_named(hub, make_manifest, tensors, tmp_path, monkeypatch, fault):
    monkeypatch.setattr("time.sleep", lambda _: None)
    write_prompt_files(tmp_path / "m", make_manifest(model_name="ViT-B-32", image_size=(224, 224)), tensors)
    if fault:
        go_offline(hub)
    with pytest.raises(HubError, match=r"base of these prompts, ViT-B-32 tagged 'openai' .*cannot be downloaded"):
        load_prompts(tmp_path / "m")
    assert requests(hub)


def test_names_from_a_repository_never_leave_the_cache(hub, pushed, model, score, cache, tmp_path):
    put(pushed, "../../../../escaped.txt", b"x")
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert not list(tmp_path.rglob("escaped.txt"))
    assert all("escaped" not in path for path in requests(hub))


def test_folder_goes_before_a_repository(hub, pushed, model, tmp_path, monkeypatch, score):
    from promptreid import save_prompts

    monkeypatch.chdir(tmp_path)
    save_prompts(model, "alice/m")
    load_prompts("alice/m")
    assert hub.log == []
    with pytest.raises(ValueError, match="is a folder, which has no revision 'main'"):
        load_prompts("alice/m", revision="main")


@pytest.mark.parametrize("name", ["./alice/m", "alice", "a/b/c", "~/m", "/alice/m"])
def test_what_is_neither_folder_nor_repository_is_refused(hub, name):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_prompts(name)
    assert hub.log == []


@pytest.mark.parametrize("name", [None, 3, b"alice/m", ["alice/m"]])
def test_name_of_another_type_is_refused(name):
    with pytest.raises(TypeError, match="which is neither a folder nor the id"):
        load_prompts(name)


def test_path_is_never_taken_for_a_repository(hub, pushed):
    with pytest.raises(FileNotFoundError):
        load_prompts(Path("alice/m"))
    assert hub.log == []


PROGRAM = """
import sys
from promptreid import PromptedCLIP, load_clip, load_prompts, push_prompts
model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16)))
push_prompts(model, "alice/whole", token=sys.argv[1])
assert load_prompts("alice/whole", token=sys.argv[1]).text.prompts.tokens.equal(model.text.prompts.tokens)
"""


def test_publish_and_load_in_a_process_of_its_own(hub, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ALICE],
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ALICE not in done.stdout + done.stderr
    assert set(hub.repos["alice/whole"].files()) == {
        "README.md",
        "config.json",
        "prompt_config.json",
        "prompts.safetensors",
    }


@pytest.fixture
def base(hub, tiny):
    """A repository in open_clip's own format, and the model in it."""
    import hashlib
    import json

    from safetensors.torch import save

    from promptreid.towers.loading import model_config, preprocess_config

    clip = tiny()
    huggingface_hub.HfApi(token=BOB).create_repo("bob/base", private=False)
    config = {"model_cfg": model_config(clip), "preprocess_cfg": preprocess_config(clip)}
    put(hub.repos["bob/base"], "open_clip_config.json", json.dumps(config).encode())
    put(hub.repos["bob/base"], "open_clip_model.safetensors", save(clip.state_dict()))
    for content in hub.repos["bob/base"].files().values():
        hub.large[hashlib.sha256(content).hexdigest()] = content
    return clip


def test_damaged_base_in_the_cache_is_fetched_once_more(hub, base, cache):
    load_clip("hf-hub:bob/base", image_size=(32, 16))
    (path,) = cache.glob("models--bob--base/snapshots/*/open_clip_model.safetensors")
    path.resolve().write_bytes(b"x" * 100)
    hub.log.clear()
    assert torch.equal(load_clip("hf-hub:bob/base", image_size=(32, 16)).text_projection, base.text_projection)
    assert any(method == "GET" and "/_lfs/" in path for method, path, _ in hub.log)


def test_base_that_stays_damaged_is_an_error_of_ours(hub, base):
    hub.faults.append(lambda method, path: b"x" * 100 if "/_lfs/" in path and method == "GET" else None)
    with pytest.raises((CheckpointError, HubError), match=r"open_clip_model\.safetensors .*"):
        load_clip("hf-hub:bob/base", image_size=(32, 16))


@pytest.mark.parametrize("fault", ["close", 503, "full"])
def test_first_cause_and_the_file_are_named(hub, base, fault, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    if fault == "full":
        whole = huggingface_hub.hf_hub_download

        def fail(repo_id, name, **options):
            if name.endswith(".json"):
                return whole(repo_id, name, **options)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("promptreid.towers.downloading.hf_hub_download", fail)
    else:
        hub.faults.append(lambda _, path: fault if "safetensors" in path or "/_lfs/" in path else None)
    with pytest.raises(HubError, match=r"open_clip_model\.safetensors of bob/base cannot be downloaded") as caught:
        load_clip("hf-hub:bob/base", image_size=(32, 16))
    assert "404" not in str(caught.value)
    assert {"full": "No space left", 503: "503", "close": "check the network"}[fault] in str(caught.value)


def test_base_in_the_cache_loads_while_the_hub_is_away(hub, base, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    load_clip("hf-hub:bob/base", image_size=(32, 16))
    go_offline(hub)
    assert torch.equal(load_clip("hf-hub:bob/base", image_size=(32, 16)).text_projection, base.text_projection)


def test_retry_after_is_obeyed_and_time_is_bounded(monkeypatch):
    from types import SimpleNamespace

    from promptreid.hub.repository import Repository

    now, waits = [0.0], []
    monkeypatch.setattr("promptreid.hub.repository.time.monotonic", lambda: now[0])
    monkeypatch.setattr("promptreid.hub.repository.time.sleep", lambda seconds: waits.append(seconds))

    def refuse(seconds: str, takes: float = 0.0):
        def request() -> None:
            now[0] += takes
            error = OSError("busy")
            error.response = SimpleNamespace(status_code=429, headers={"Retry-After": seconds})
            raise error

        return request

    for request, expected in ((refuse("7"), [7, 7, 7]), (refuse("600"), []), (refuse("0", takes=20), [0.5])):
        waits.clear()
        with pytest.raises(HubError, match="429"):
            Repository("alice/m").call(request)
        assert [round(wait) if wait > 1 else 0.5 for wait in waits] == expected


def test_commit_is_known_of_what_was_loaded(hub, pushed, model, tmp_path):
    from promptreid import save_prompts

    assert load_prompts("alice/m").commit == pushed.refs["refs/heads/main"]
    assert load_prompts(save_prompts(model, tmp_path / "m")).commit is None


def test_index_keeps_its_commit_when_the_author_pushes_again(hub, pushed, model, tmp_path, capsys):
    from PIL import Image

    from promptreid.cli.main import main

    for color in ("red", "blue"):
        (tmp_path / "crops").mkdir(exist_ok=True)
        Image.new("RGB", (16, 32), color).save(tmp_path / "crops" / f"{color}.png")
    gallery = str(tmp_path / "gallery")
    first = pushed.refs["refs/heads/main"]
    assert main(["index", str(tmp_path / "crops"), "--output", gallery, "--model", "alice/m", "--device", "cpu"]) == 0
    with torch.no_grad():
        model.text.prompts.tokens.add_(1)
        model.vision.prompts.tokens.add_(1)
    push_prompts(model, "alice/m", token=ALICE, private=False)
    capsys.readouterr()
    assert main(["search", gallery, "a man", "--json", "--device", "cpu"]) == 0
    assert main(["search", gallery, "a man", "--model", "alice/m", "--device", "cpu"]) == 2
    assert "another model" in capsys.readouterr().err
    assert main(["search", gallery, "a man", "--model", "alice/m", "--revision", first, "--device", "cpu"]) == 0
    assert main(["search", gallery, "a man", "--model", "promptreid-tiny", "--revision", "v1"]) == 2
    assert "--revision goes with a Hub repository" in capsys.readouterr().err


def test_bare_base_on_the_hub_is_a_model_of_the_command_line(hub, base, tmp_path):
    from promptreid.cli.options import ModelChoice, load_model

    commit = hub.repos["bob/base"].refs["refs/heads/main"]
    put(hub.repos["bob/base"], "open_clip_config.json", b"{}")
    choice = ModelChoice("hf-hub:bob/base", image_size=(32, 16), revision=commit)
    assert torch.equal(load_model(choice, device="cpu").clip.text_projection, base.text_projection)


def test_tokenizer_of_a_base_in_a_cache_of_its_own_asks_the_hub_for_nothing(hub, base, cache, tmp_path):
    clip = load_clip("hf-hub:bob/base", image_size=(32, 16), cache_dir=tmp_path / "mine")
    asked = len(hub.log)
    assert PromptedCLIP(clip).tokenizer(["a man"]).shape == (1, 77)
    assert len(hub.log) == asked
    assert not (cache / "models--bob--base").exists()


def test_cache_that_cannot_be_written_is_not_called_the_network(hub, pushed, base, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for load in (
        lambda: load_prompts("alice/m", cache_dir=tmp_path / "file" / "cache"),
        lambda: load_clip("hf-hub:bob/base", cache_dir=tmp_path / "file" / "cache"),
    ):
        with pytest.raises(HubError, match=r"pass a cache_dir= that you may write to, or set HF_HOME"):
            load()


def push_again(hub, base):
    """Another base in the same repository, as its author may push it."""
    import hashlib

    from safetensors.torch import save

    other = {name: value + 1 if value.is_floating_point() else value for name, value in base.state_dict().items()}
    put(hub.repos["bob/base"], "open_clip_model.safetensors", save(other))
    hub.large.update({hashlib.sha256(c).hexdigest(): c for c in hub.repos["bob/base"].files().values()})


def test_bare_base_is_loaded_from_one_commit_which_is_kept(hub, base, tmp_path, monkeypatch):
    from promptreid import PromptedCLIP, save_prompts
    from promptreid.towers import loading

    commit = hub.repos["bob/base"].refs["refs/heads/main"]
    read = loading.read_config

    def overtaken(folder):
        push_again(hub, base)  # between the configuration and the weights
        monkeypatch.setattr(loading, "read_config", read)
        return read(folder)

    monkeypatch.setattr(loading, "read_config", overtaken)
    model = PromptedCLIP(load_clip("hf-hub:bob/base", image_size=(32, 16)))
    assert torch.equal(model.clip.text_projection, base.text_projection)
    assert model.commit == commit
    assert model.source.name == f"hf-hub:bob/base@{commit}"
    again = load_prompts(save_prompts(model, tmp_path / "m"), trust_base=True)
    assert torch.equal(again.clip.text_projection, base.text_projection)
    assert again.tokenizer(["a man"]).shape == (1, 77)
    newest = load_clip("hf-hub:bob/base", image_size=(32, 16))
    assert torch.equal(newest.text_projection, base.text_projection + 1)
    with pytest.raises(CheckpointError, match="its weights differ"):
        load_prompts(tmp_path / "m", model=newest)


def test_gated_repository_is_not_taken_for_a_missing_folder():
    kinds = huggingface_hub.errors
    # Without a response, whose class depends on the version.
    assert not is_not_found(kinds.GatedRepoError.__new__(kinds.GatedRepoError))
    assert is_not_found(kinds.RepositoryNotFoundError.__new__(kinds.RepositoryNotFoundError))


def test_index_of_a_bare_base_keeps_its_commit(hub, base, tmp_path, capsys):
    from PIL import Image

    from promptreid.cli.main import main

    (tmp_path / "crops").mkdir()
    Image.new("RGB", (16, 32), "red").save(tmp_path / "crops" / "red.png")
    gallery, size = str(tmp_path / "gallery"), ("--image-size", "32", "16")
    assert main(["index", str(tmp_path / "crops"), "--output", gallery, "--model", "hf-hub:bob/base", *size]) == 0
    push_again(hub, base)
    assert main(["search", gallery, "a man"]) == 0
    capsys.readouterr()
    for option in ("--revision", "--pretrained"):
        assert main(["search", gallery, "a man", option, "v1"]) == 2
        assert f"{option} would do nothing here" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "demo"])
def test_revision_is_an_option_wherever_a_model_is_named(hub, pushed, base, tmp_path, monkeypatch, command):
    from promptreid.cli.main import main
    from promptreid.demo import app
    from promptreid.synthetic import write_generated

    first = hub.repos["bob/base"].refs["refs/heads/main"]
    push_again(hub, base)
    found = []
    if command == "demo":
        monkeypatch.setattr("promptreid.cli.main.find_spec", lambda package: package)  # gradio need not be installed
        monkeypatch.setattr(app, "launch", lambda *_, model, **__: found.append(model.commit))
        main(["demo", "--model", "alice/m", "--revision", pushed.refs["refs/heads/main"]])
        assert found == [pushed.refs["refs/heads/main"]]
        return
    data = write_generated(tmp_path / "d", num_identities=(2, 1, 1), images_per_identity=1, progress=False)
    monkeypatch.setattr(
        "promptreid.cli.training_runs.adapt", lambda model, *_, **__: found.append(model.commit) or 1 / 0
    )
    main(["train", str(data), "--output", str(tmp_path / "r"), "--model", "hf-hub:bob/base", "--revision", first])
    assert found == [first]


def test_configuration_without_an_image_size_is_of_open_clips_default(tiny, tmp_path):
    import json

    from promptreid import PromptedCLIP, save_prompts

    clip = load_clip("promptreid-tiny", image_size=(224, 224))
    folder = save_prompts(PromptedCLIP(clip), tmp_path / "m", encoders="always")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    del config["model_cfg"]["vision_cfg"]["image_size"]
    path.write_text(json.dumps(config))
    again = load_clip(f"local-dir:{folder}", image_size=(224, 224))
    assert torch.equal(again.visual.positional_embedding, clip.visual.positional_embedding)

"""Push with the real huggingface_hub client to the tests' own Hub, and load again from there."""

import contextlib
import hashlib
import json
import logging
import threading
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts, save_prompts
from promptreid.errors import CheckpointError, HubError
from promptreid.files import separate_tensors
from promptreid.hub.card import CardDetails, is_untouched
from promptreid.model.publishing import push_prompts, write_card
from promptreid.towers.empty_models import loads_in_plain_open_clip
from promptreid.towers.loading import model_config, preprocess_config

ALICE, BOB = "hf_aliceAliceAlice0", "hf_bobBobBobBobBob1"
# huggingface_hub 2.4 uploads in a way that its own HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PROMPTS_ONLY = {"README.md", "config.json", "prompt_config.json", "prompts.safetensors"}
ALL_FILES = PROMPTS_ONLY | {"open_clip_model.safetensors", "open_clip_config.json"}


def test_pushed_prompts_load_with_the_same_scores(hub, model, score):
    url = push_prompts(model, "alice/prompts", token=ALICE)
    repo = hub.repos["alice/prompts"]
    assert url == f"{hub.url}/alice/prompts/commit/{repo.refs['refs/heads/main']}"
    assert repo.private
    assert set(repo.files()) == PROMPTS_ONLY
    assert torch.equal(score(load_prompts("alice/prompts", token=ALICE)), score(model))


def test_pushed_encoders_load_with_the_same_scores_and_in_plain_open_clip(hub, tuned, score):
    push_prompts(tuned, "alice/tuned", token=ALICE, private=False)
    assert set(hub.repos["alice/tuned"].files()) == ALL_FILES
    assert torch.equal(score(load_prompts("alice/tuned")), score(tuned))
    clip, _, _ = open_clip.create_model_and_transforms("hf-hub:alice/tuned")
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad(), tuned.disabled():
        torch.testing.assert_close(clip.eval().encode_image(images), tuned.encode_image(images))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PromptConfig(2, 2, kind="coupled"), "projected from those of the text encoder"),
        (PromptConfig(2, 2, kind="prefix"), "they are keys and values of attention"),
        (PromptConfig(2, 2, kind="grouped", groups=("cam_a", "cam_b")), "for each of 2 groups (cam_a, cam_b)"),
        (PromptConfig(2, 2, 1, 1), "2 a block in the text encoder"),
    ],
    ids=["coupled", "prefix", "grouped", "kept"],
)
def test_pushed_prompts_of_a_form_load_with_the_same_scores(hub, model, score, config, words):
    model.attach(config)
    push_prompts(model, "alice/form", token=ALICE)
    files = hub.repos["alice/form"].files()
    assert set(files) == PROMPTS_ONLY
    assert words in files["README.md"].decode()
    loaded = load_prompts("alice/form", token=ALICE)
    assert loaded.config == config
    assert torch.equal(score(loaded), score(model))


def test_folder_is_pushed_as_it_is(hub, model, score, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    (folder / "person.jpg").write_bytes(b"a picture")
    (folder / "labels.json").write_text("[1, 2]")
    push_prompts(folder, "alice/m", token=ALICE)
    push_prompts(str(folder), "alice/m", token=ALICE)
    files = hub.repos["alice/m"].files()
    assert set(files) == PROMPTS_ONLY
    assert files["prompt_config.json"] == (folder / "prompt_config.json").read_bytes()


def test_load_from_the_hub_asks_once_for_the_file_that_counts_downloads(hub, model):
    push_prompts(model, "alice/prompts", token=ALICE)
    assert json.loads(hub.repos["alice/prompts"].files()["config.json"])["library_name"] == "promptreid"
    hub.log.clear()
    load_prompts("alice/prompts", token=ALICE)
    load_prompts("alice/prompts", token=ALICE)
    assert len([path for _, path, _ in hub.log if path.endswith("/config.json")]) == 1


def test_load_of_a_repository_without_the_counted_file_works(hub, model, score):
    push_prompts(model, "alice/prompts", token=ALICE)
    del hub.repos["alice/prompts"].find("main").tree["config.json"]
    assert torch.equal(score(load_prompts("alice/prompts", token=ALICE)), score(model))


def test_counted_file_of_somebody_else_is_left_alone(hub, model):
    push_prompts(model, "alice/prompts", token=ALICE)
    HfApi(token=ALICE).upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="alice/prompts")
    push_prompts(model, "alice/prompts", token=ALICE, encoders="always")
    assert hub.repos["alice/prompts"].files()["config.json"] == b"{}"


def test_card_that_was_written_into_a_folder_is_published_under_its_new_name(hub, model, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    card = write_card(folder, metrics={"rank1": 0.5}, details=CardDetails(dataset="CUHK-PEDES"))
    assert "your-name/your-model" in card.read_text()
    assert "(licence: mit)" in card.read_text()
    for repo in ("alice/first", "alice/second"):
        push_prompts(folder, repo, token=ALICE)
        text = hub.repos[repo].files()["README.md"].decode()
        assert "your-" not in text
        assert f'load_prompts("{repo}")' in text
        assert is_untouched(text)
        assert "| Rank-1 | 50.00 | one run |" in text
    with pytest.raises(ValueError, match=r"README\.md is the card, so metrics and details would be lost"):
        push_prompts(folder, "alice/first", token=ALICE, metrics={"rank1": 0.6})


def test_card_that_was_changed_by_hand_is_not_written_again_in_its_folder(model, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    card = write_card(folder)
    first = card.read_text()
    write_card(folder, details=CardDetails(dataset="RSTPReid"))
    assert card.read_text() != first
    card.write_text("# Mine\n")
    write_card(folder)
    assert card.read_text() == "# Mine\n"


def test_figure_is_published_where_the_card_shows_it_and_only_there(hub, model, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    (folder / "ranking.png").write_bytes(b"PNG")
    push_prompts(folder, "alice/m", token=ALICE)
    assert "ranking.png" not in hub.repos["alice/m"].files()
    write_card(folder, details=CardDetails(sections={"What it finds": "![found](ranking.png)"}))
    push_prompts(folder, "alice/m", token=ALICE)
    assert hub.repos["alice/m"].files()["ranking.png"] == b"PNG"


def test_card_of_a_folder_is_kept(hub, model, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    (folder / "README.md").write_text("my own words")
    push_prompts(folder, "alice/m", token=ALICE)
    assert hub.repos["alice/m"].files()["README.md"] == b"my own words"
    with pytest.raises(ValueError, match=r"README\.md is the card, so metrics and details would be lost"):
        push_prompts(folder, "alice/m", token=ALICE, metrics={"rank1": 0.5})


def test_own_card_that_the_hub_finds_wrong_is_refused_and_nothing_is_pushed(hub, model, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    (folder / "README.md").write_text("---\nlicense: my-own\n---\n\nmy own words")
    with pytest.raises(ValueError, match=r'Invalid metadata in README\.md[\s\S]*"license" must be one of'):
        push_prompts(folder, "alice/m", token=ALICE)
    assert hub.repos["alice/m"].files() == {}


@pytest.mark.parametrize("kind", ["link", "folder", "large", "bytes"])
def test_card_that_is_a_link_or_no_text_is_refused_unread(hub, model, tmp_path, kind):
    folder, card = save_prompts(model, tmp_path / "m"), tmp_path / "m" / "README.md"
    if kind == "link":
        (tmp_path / "private-key").write_text("very secret")
        card.symlink_to(tmp_path / "private-key")
    elif kind == "folder":
        card.mkdir()
    else:
        card.write_bytes(b"\xff" if kind == "bytes" else b"a" * (2**20 + 1))
    words = {"large": "has 1048577 bytes", "bytes": "is not text in UTF-8"}.get(kind, "is a link or not a file")
    with pytest.raises(ValueError, match=words):
        push_prompts(folder, "alice/m", token=ALICE)
    assert hub.log == []


@pytest.mark.parametrize("details", [None, CardDetails(license="cc-by-nc-4.0"), CardDetails(license_name="my-1.0")])
def test_card_of_ours_passes_the_check_of_the_hub(hub, hub_server, model, tuned, details):
    for pushed in (model, tuned):
        push_prompts(pushed, "alice/m", token=ALICE, metrics={"rank1": 0.5, "mAP": 0.4}, details=details)
        card = hub.repos["alice/m"].files()["README.md"].decode()
        assert hub_server[0].faults_in_card(card) == []
    other = details is None or details.license == "other"
    assert bool(hub_server[0].faults_in_card(card.replace("license_link:", "link:"))) == other


def test_token_is_not_shown_by_what_holds_it():
    from promptreid.hub.repository import Repository

    assert ALICE not in repr(Repository("alice/m", token=ALICE))


def test_save_killed_before_files_got_their_names_is_pushed_whole(hub, model, score, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    digest = json.loads((folder / "prompt_config.json").read_text())["sha256"]["prompts.safetensors"]
    (folder / "prompts.safetensors").rename(folder / f".prompts.safetensors-{digest}")
    push_prompts(folder, "alice/m", token=ALICE)
    assert torch.equal(score(load_prompts("alice/m", token=ALICE)), score(model))


def test_prompts_pushed_over_encoders_take_them_away(hub, model, tuned, score):
    push_prompts(tuned, "alice/m", token=ALICE)
    push_prompts(model, "alice/m", token=ALICE)
    assert set(hub.repos["alice/m"].files()) == PROMPTS_ONLY
    assert torch.equal(score(load_prompts("alice/m", token=ALICE)), score(model))


def test_pushing_the_same_again_makes_no_new_commit(hub, model):
    first = push_prompts(model, "alice/m", token=ALICE)
    assert (first.is_new, first.is_private) == (True, True)
    again = push_prompts(model, "alice/m", token=ALICE)
    assert (again, again.is_new, again.is_private) == (first, False, True)


def test_branch_is_made_and_main_is_left_alone(hub, model, tuned, score):
    push_prompts(model, "alice/m", token=ALICE)
    push_prompts(tuned, "alice/m", token=ALICE, revision="stage-two")
    assert torch.equal(score(load_prompts("alice/m", token=ALICE)), score(model))
    assert torch.equal(score(load_prompts("alice/m", token=ALICE, revision="stage-two")), score(tuned))


def test_pull_request_to_somebody_elses_repository(hub, model, tuned, score):
    push_prompts(model, "alice/m", token=ALICE, private=False)
    with pytest.raises(HubError, match="you have no permission to do that there"):
        push_prompts(tuned, "alice/m", token=BOB, private=False)
    url = push_prompts(tuned, "alice/m", token=BOB, private=False, create_pr=True, commit_message="Tune it")
    assert url.endswith("/alice/m/discussions/1")
    assert torch.equal(score(load_prompts("alice/m")), score(model))
    assert torch.equal(score(load_prompts("alice/m", revision="refs/pr/1")), score(tuned))
    assert hub.repos["alice/m"].find("refs/pr/1").title == "Tune it"


def test_pull_request_to_no_repository_is_refused(hub, model):
    with pytest.raises(HubError, match="no repository alice/no to open a pull request in"):
        push_prompts(model, "alice/no", token=ALICE, create_pr=True)
    assert hub.repos == {}


def test_public_repository_is_refused_unless_asked_for(hub, model):
    push_prompts(model, "alice/m", token=ALICE, private=False)
    assert not hub.repos["alice/m"].private
    before = dict(hub.repos["alice/m"].refs)
    with pytest.raises(ValueError, match=r"alice/m is public, and private=True .*pass private=False to publish there"):
        push_prompts(model, "alice/m", token=ALICE)
    assert hub.repos["alice/m"].refs == before


def test_private_repository_stays_private(hub, model):
    push_prompts(model, "alice/m", token=ALICE)
    with pytest.warns(UserWarning, match="alice/m is private and stays so"):
        push_prompts(model, "alice/m", token=ALICE, private=False)
    assert hub.repos["alice/m"].private


@pytest.mark.parametrize(
    ("repo_id", "token", "words"),
    [
        ("alice/m", "hf_wrongWrongWrong00", "the token is missing, wrong or expired"),
        ("alice/m", None, "the token is missing, wrong or expired"),
        ("carol/m", ALICE, "you have no permission to do that there"),
    ],
)
def test_who_may_not_push_is_told(hub, model, repo_id, token, words):
    with pytest.raises(HubError, match=words):
        push_prompts(model, repo_id, token=token)
    assert hub.repos == {}


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "a b/c", "../x", "alice/" + "x" * 200, "-a/b", "a/b.git", "mine"])
def test_repo_id_that_is_none_is_refused(hub, model, repo_id):
    with pytest.raises(ValueError, match=r"is not the id of a Hub repository"):
        push_prompts(model, repo_id, token=ALICE)
    assert hub.log == []


XET_404 = "Network error: HTTP status client error (404 Not Found), domain: http://hub/api/xet-write-token/main?sig=x)"


def fails_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("promptreid.hub.transfer.HfApi.create_commit", fail)


def test_upload_that_fails_is_not_advised_to_use_the_cache(hub, model, monkeypatch):
    fails_with(monkeypatch, ConnectionError("connection reset"))
    with pytest.raises(HubError, match=r"cannot be reached for alice/m .*check the network, and push again$"):
        push_prompts(model, "alice/m", token=ALICE)
    fails_with(monkeypatch, huggingface_hub.errors.OfflineModeIsEnabled("offline"))
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set; unset it$"):
        push_prompts(model, "alice/m", token=ALICE)


def test_address_that_is_not_there_is_not_an_unreachable_hub(hub, model, monkeypatch):
    fails_with(monkeypatch, ConnectionError(XET_404))
    words = r"refuses alice/m with HTTP status 404: there is nothing at that address.*\(http://hub/api/\S+/main\)$"
    with pytest.raises(HubError, match=words):
        push_prompts(model, "alice/m", token=ALICE)


def test_arguments_of_other_types_are_refused(hub, model, tmp_path):
    with pytest.raises(TypeError, match="private is 'no', expected True or False"):
        push_prompts(model, "alice/m", private="no")
    with pytest.raises(TypeError, match="create_pr is 1"):
        push_prompts(model, "alice/m", create_pr=1)
    with pytest.raises(TypeError, match="expected a PromptedCLIP"):
        push_prompts(model.clip, "alice/m")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        push_prompts(tmp_path / "no", "alice/m")
    with pytest.raises(CheckpointError, match=r"has no prompt_config\.json"):
        push_prompts(tmp_path, "alice/m")
    with pytest.raises(ValueError, match="rank1 is 75, expected a fraction"):
        push_prompts(model, "alice/m", metrics={"rank1": 75})
    assert hub.log == []


def test_token_is_in_no_file_log_or_error(hub, model, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    push_prompts(model, "alice/m", token=ALICE, metrics={"rank1": 0.5})
    load_prompts("alice/m", token=ALICE)
    assert all(ALICE.encode() not in content for content in hub.repos["alice/m"].files().values())
    for place in ("carol/m", "alice/n"):
        hub.faults = [] if place == "carol/m" else [lambda *_: 500]
        with pytest.raises(HubError) as caught:
            push_prompts(model, place, token=ALICE)
        assert ALICE not in repr(caught.value) + str(caught.value.__cause__)
    shown = capfd.readouterr()
    assert ALICE not in caplog.text + shown.out + shown.err


@pytest.mark.parametrize("secret", [ALICE, "hf_" + "A1b2" * 8, "ghp_" + "A1b2" * 8])
def test_secret_in_the_card_is_refused_and_not_repeated(hub, model, secret):
    with pytest.raises(ValueError, match="holds an access token") as caught:
        push_prompts(model, "alice/m", token=ALICE, details=CardDetails(training={"command": f"run --token {secret}"}))
    assert secret not in str(caught.value)
    with pytest.raises(ValueError, match="holds an access token"):
        push_prompts(model, "alice/m", token=ALICE, commit_message=f"with {secret}")
    assert hub.repos == {}


def test_only_weights_of_the_architecture_are_published(hub, tuned, tmp_path):
    folder = save_prompts(tuned, tmp_path / "m")
    from safetensors.torch import save_file

    weights = load_tensors((folder / "open_clip_model.safetensors").read_bytes())
    save_file({**weights, "identity_head.weight": torch.zeros(3, 2)}, folder / "open_clip_model.safetensors")
    manifest = json.loads((folder / "prompt_config.json").read_text())
    from promptreid.files import file_digest
    from promptreid.hub.manifest import _checksum

    manifest["sha256"]["open_clip_model.safetensors"] = file_digest(folder / "open_clip_model.safetensors")
    del manifest["checksum"]
    manifest["checksum"] = _checksum(manifest)
    (folder / "prompt_config.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"unexpected identity_head\.weight"):
        push_prompts(folder, "alice/m", token=ALICE)
    assert hub.log == []


def test_base_from_a_file_is_published_with_its_weights_and_without_its_path(hub, tiny, tmp_path, score):
    path = tmp_path / "secret-project.pt"
    torch.save(load_clip("promptreid-tiny", pretrained="generated", image_size=(64, 64)).state_dict(), path)
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained=str(path), image_size=(64, 64)))
    with pytest.raises(ValueError, match=r'nobody else could make the base of these prompts; .*encoders="always"'):
        push_prompts(model, "alice/m", token=ALICE)
    push_prompts(model, "alice/m", token=ALICE, encoders="always")
    files = hub.repos["alice/m"].files()
    assert all(b"secret-project" not in content for content in files.values())
    loaded = load_prompts("alice/m", token=ALICE)
    assert torch.equal(loaded.clip.text_projection, model.clip.text_projection)


def test_concurrent_pushes_leave_one_whole_push(hub, model, tuned, score, tmp_path):
    folders = [save_prompts(model, tmp_path / "0"), save_prompts(tuned, tmp_path / "1")]
    push_prompts(folders[0], "alice/m", token=ALICE)
    errors: list[BaseException] = []

    def push(folder: Path) -> None:
        try:
            for _ in range(3):
                push_prompts(folder, "alice/m", token=ALICE)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(folder,)) for folder in folders * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = score(load_prompts("alice/m", token=ALICE))
    names = set(hub.repos["alice/m"].files())
    assert (names == PROMPTS_ONLY and torch.equal(found, score(model))) or (
        names == ALL_FILES and torch.equal(found, score(tuned))
    )


def test_conflict_at_each_attempt_is_an_error(hub, model, monkeypatch):
    push_prompts(model, "alice/m", token=ALICE)
    with torch.no_grad():
        model.text.prompts.tokens.add_(1)
    monkeypatch.setattr("promptreid.hub.transfer._MOST_WAIT_SECONDS", 0.001)
    hub.faults.append(lambda method, path: 412 if "/commit/" in path and method == "POST" else None)
    with pytest.raises(HubError, match="another user keeps changing it"):
        push_prompts(model, "alice/m", token=ALICE)


@pytest.mark.parametrize("part", ["/api/models/alice/m", "/preupload/", "objects/batch", "/_lfs/", "/commit/main"])
@pytest.mark.parametrize("fault", [503, "close"])
def test_passing_fault_during_a_push_is_overcome(hub, model, score, part, fault, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    left = [2]

    def fail(_: str, path: str) -> object:
        if part in path and left[0]:
            left[0] -= 1
            return fault
        return None

    hub.faults.append(fail)
    push_prompts(model, "alice/m", token=ALICE)
    assert left == [0]
    hub.faults.clear()
    assert torch.equal(score(load_prompts("alice/m", token=ALICE)), score(model))


@pytest.mark.parametrize("part", ["/preupload/", "objects/batch", "/_lfs/", "/commit/main"])
def test_lasting_fault_during_a_push_leaves_the_repository_as_it_was(hub, model, tuned, score, part, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    push_prompts(model, "alice/m", token=ALICE)
    hub.faults.append(lambda _, path: 500 if part in path else None)
    with pytest.raises(HubError, match=r"HTTP status 500|cannot be reached"):
        push_prompts(tuned, "alice/m", token=ALICE)
    hub.faults.clear()
    assert torch.equal(score(load_prompts("alice/m", token=ALICE)), score(model))


def add(repo, **files: bytes) -> None:
    commit = repo.find("main")
    repo.refs["refs/heads/main"] = repo.commit(commit.oid, {**commit.tree, **files}, "by hand")


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json", "prompts.safetensors"])
def test_repository_of_another_model_is_refused_and_left_as_it_was(hub, model, tuned, name):
    import huggingface_hub

    huggingface_hub.HfApi(token=ALICE).create_repo("alice/m", private=True)
    add(hub.repos["alice/m"], **{name: b"theirs", "README.md": b"theirs"})
    for pushed in (model, tuned):
        with pytest.raises(ValueError, match=rf"alice/m holds {name} and no prompt_config\.json, .*another repo_id"):
            push_prompts(pushed, "alice/m", token=ALICE)
    assert hub.repos["alice/m"].files() == {name: b"theirs", "README.md": b"theirs"}


@pytest.mark.parametrize("ours", [False, True])
def test_card_that_was_changed_by_hand_is_kept(hub, model, ours, tmp_path):
    import huggingface_hub

    if ours:
        push_prompts(model, "alice/m", token=ALICE, metrics={"rank1": 0.5})
        card = hub.repos["alice/m"].files()["README.md"].replace(b"# m\n", b"# m\n\nMy own words.\n")
        assert b"own words" in card
    else:
        huggingface_hub.HfApi(token=ALICE).create_repo("alice/m", private=True)
        card = b"---\nlicense: mit\n---\n"
    add(hub.repos["alice/m"], **{"README.md": card})
    with pytest.warns(UserWarning, match=r"README\.md of alice/m was written or changed by hand and is kept"):
        push_prompts(model, "alice/m", token=ALICE, metrics={"rank1": 0.75})
    files = hub.repos["alice/m"].files()
    assert set(files) == PROMPTS_ONLY
    assert files["README.md"] == card
    folder = save_prompts(model, tmp_path / "m")
    (folder / "README.md").write_bytes(b"the new card")
    push_prompts(folder, "alice/m", token=ALICE)
    assert hub.repos["alice/m"].files()["README.md"] == b"the new card"


def test_card_of_ours_is_written_again(hub, model):
    push_prompts(model, "alice/m", token=ALICE, metrics={"rank1": 0.5})
    push_prompts(model, "alice/m", token=ALICE, metrics={"rank1": 0.75})
    assert b"75.00" in hub.repos["alice/m"].files()["README.md"]


@pytest.fixture
def public_base(hub, tiny):
    """A repository in open_clip's own format."""
    import huggingface_hub

    clip = tiny()
    huggingface_hub.HfApi(token=ALICE).create_repo("bob/base", token=BOB, private=False)
    config = {"model_cfg": model_config(clip), "preprocess_cfg": preprocess_config(clip)}
    add(
        hub.repos["bob/base"],
        **{
            "open_clip_config.json": json.dumps(config).encode(),
            "open_clip_model.safetensors": save(clip.state_dict()),
        },
    )
    hub.large.update({hashlib.sha256(c).hexdigest(): c for c in hub.repos["bob/base"].files().values()})
    return clip


def test_base_on_the_hub_is_published_by_name_and_loaded_if_trusted(hub, public_base, score):
    model = PromptedCLIP(load_clip("hf-hub:bob/base", image_size=(32, 16))).eval()
    push_prompts(model, "alice/m", token=ALICE, private=False)
    files = hub.repos["alice/m"].files()
    assert set(files) == PROMPTS_ONLY
    assert b"`bob/base` on the Hub" in files["README.md"]
    assert b"base_model: bob/base" in files["README.md"]
    with pytest.raises(CheckpointError, match=r"lists no architecture 'hf-hub:bob/base@\w{40}', .*trust_base=True"):
        load_prompts("alice/m")
    assert torch.equal(score(load_prompts("alice/m", trust_base=True)), score(model))


@pytest.mark.parametrize("own", [False, True])
def test_base_in_a_folder_is_published_with_its_encoders_and_without_its_path(hub, tiny, tmp_path, score, own):
    folder = save_prompts(PromptedCLIP(tiny()), tmp_path / "secret-project", encoders="always")
    if own:  # an architecture that open_clip does not list
        path = folder / "open_clip_config.json"
        path.write_text(path.read_text().replace('"context_length": 77', '"context_length": 77, "pad_id": 1'))
    model = PromptedCLIP(load_clip(f"local-dir:{folder}", image_size=(32, 16))).eval()
    push_prompts(model, "alice/m", token=ALICE, private=False)
    files = hub.repos["alice/m"].files()
    assert set(files) == ALL_FILES
    assert all(b"secret-project" not in content for content in files.values())
    assert b"fine-tuned" not in files["README.md"]
    assert torch.equal(score(load_prompts("alice/m", trust_base=own)), score(model))


def test_random_base_is_not_called_fine_tuned(hub):
    push_prompts(PromptedCLIP(load_clip("promptreid-tiny", image_size=(32, 16))), "alice/m", token=ALICE)
    files = hub.repos["alice/m"].files()
    assert set(files) == ALL_FILES
    assert b"Prompts and encoders for" in files["README.md"]
    assert b"fine-tuned" not in files["README.md"]


@pytest.mark.filterwarnings("ignore")  # of open_clip's and timm's making these models
@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("ViT-B-16", True),
        ("coca_ViT-B-32", True),
        ("convnext_base", True),
        ("RN50", False),
        ("EVA02-B-16", False),
        ("ViT-B-16-SigLIP2", False),
        ("vit_relpos_medium_patch16_cls_224", False),
        ("swin_base_patch4_window7_224", False),
    ],
)
def test_card_promises_plain_open_clip_exactly_where_it_works(zoo, name, plain, tmp_path):
    with zoo.shrunk():
        clip = load_clip(name, image_size=(384, 128))
        config, state = model_config(clip), clip.state_dict()
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        assert loads_in_plain_open_clip(config, shapes) == plain
        (tmp_path / "open_clip_model.safetensors").write_bytes(save(separate_tensors(state)))
        (tmp_path / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": config, "preprocess_cfg": preprocess_config(clip)})
        )
        images = torch.randn(1, 3, 384, 128)
        works = False
        with contextlib.suppress(Exception):
            other = open_clip.create_model(f"local-dir:{tmp_path}").eval()
            works = torch.allclose(other.encode_image(images), clip.encode_image(images))
        assert works == plain
        again = load_clip(f"local-dir:{tmp_path}", image_size=(384, 128))
        torch.testing.assert_close(again.encode_image(images), clip.encode_image(images))


@pytest.mark.parametrize("plain", [False, True])
def test_card_of_a_push_promises_what_was_tried(hub, tuned, monkeypatch, plain):
    from promptreid.model import publishing

    monkeypatch.setattr(publishing, "loads_in_plain_open_clip", lambda config, shapes: bool(shapes) and plain)
    push_prompts(tuned, "alice/m", token=ALICE)
    card = hub.repos["alice/m"].files()["README.md"].decode()
    assert ("Plain open_clip loads the" in card) is plain
    assert ("Plain open_clip does not load" in card) is not plain

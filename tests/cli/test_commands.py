"""The commands as a person and as a script call them."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip
from promptreid.cli import train_model as train_command
from promptreid.cli.main import COMMANDS, main
from promptreid.data.reader import LAYOUTS
from promptreid.towers.tiny import TINY_ADAPTED

NAMES = [
    "try",
    "check",
    "train",
    "evaluate",
    "index",
    "search",
    "calibrate",
    "store",
    "demo",
    "convert",
    "export",
    "push",
    "completion",
]


@pytest.fixture
def index(drawn, tmp_path, call):
    assert call("index", drawn / "imgs", "--output", tmp_path / "gallery")[0] == 0
    return tmp_path / "gallery"


def test_every_command_is_there():
    assert list(COMMANDS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_itself_and_the_exit_codes(capsys, name):
    with pytest.raises(SystemExit) as leaving:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert leaving.value.code == 0
    assert "--json" in text
    assert "exit codes: 0 done" in text


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in NAMES), ["search", "-k", "many"]],
)
def test_help_and_mistakes_in_the_arguments_do_not_wait_for_torch(arguments):
    script = (
        "import sys\n"
        "from promptreid.cli.main import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["check", "train", "evaluate"])
def test_help_names_every_layout(capsys, name):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(layout in text for layout in LAYOUTS)


def test_version_and_unknown_commands_leave_as_argparse_does(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith("promptreid ")
    assert main(["find"]) == 2
    written = capsys.readouterr()
    assert (written.out, "Traceback" in written.err) == ("", False)
    assert written.err.startswith("error: argument COMMAND: invalid choice: 'find'")


def test_arguments_that_do_not_fit_are_told_in_json_too(call):
    code, answer, notes = call("search", "--json", "-k", "many")
    assert (code, answer["exit_code"]) == (2, 2)
    assert "argument -k: invalid int value: 'many'; see promptreid search --help" in answer["error"]
    assert notes == f"error: {answer['error']}\n"


def test_check_counts_and_finds_what_is_wrong(call, drawn, tmp_path):
    code, text, _ = call("check", drawn)
    assert code == 0
    assert "CUHK-PEDES" in text
    broken = tmp_path / "broken"
    shutil.copytree(drawn, broken)
    gone = next(broken.rglob("*.jpg"))
    gone.unlink()
    code, report, _ = call("check", broken, "--json")
    assert (code, report["exit_code"]) == (1, 1)
    assert any(gone.name in problem["message"] for problem in report["problems"])


def test_check_evaluate_and_train_agree_on_what_is_left_out(call, drawn, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(drawn, root)
    entries = json.loads((root / "reid_raw.json").read_text())
    entries[0]["captions"] = []
    entries[1]["split"] = "training"
    (root / "imgs" / entries[2]["file_path"]).unlink()
    (root / "imgs" / entries[3]["file_path"]).write_bytes(b"")
    (root / "reid_raw.json").write_text(json.dumps(entries))
    shutil.move(root / "imgs", tmp_path / "elsewhere")
    images = ("--image-dir", tmp_path / "elsewhere")
    code, text, _ = call("check", root, *images)
    assert (code, "not ready for training: 4 errors" in text) == (1, True)
    code, report, _ = call("check", root, *images, "--on-bad", "skip", "--json")
    assert (code, report["ok"], len(report["left_out"])) == (0, True, 4)
    trained = []

    def adapt(model, data, *_, **__):
        trained.append(data)
        raise ValueError("enough")

    monkeypatch.setattr("promptreid.cli.training_runs.adapt", adapt)
    _, _, notes = call("train", root, *images, "--on-bad", "skip", "--output", tmp_path / "run")
    assert "3 of 32 records cannot be used and are left out" in notes
    assert "1 of 13 images of the train split cannot be used" in notes
    code, _, notes = call("evaluate", root, *images, "--on-bad", "skip", "--split", "val")
    assert (code, "3 of 32 records" in notes) == (0, True)
    assert sum(len(split) for split in trained[0].splits) == len(entries) - 4
    assert trained[0].summary() == report["summary"]


def test_index_search_and_picture_work_as_the_readme_says(call, drawn, tmp_path):
    gallery = tmp_path / "my gallery"
    code, text, notes = call("index", drawn / "imgs", "--output", gallery)
    assert code == 0
    assert "32 images are indexed" in text
    assert shlex.split(text.splitlines()[-1])[:4] == ["promptreid", "search", str(gallery), "a woman in a red coat"]
    assert text.startswith("model: promptreid-tiny-adapted\n")
    assert notes == ""  # these crops are drawn: no warning of photographs
    picture = tmp_path / "found.png"
    code, text, notes = call("search", gallery, "a woman in a red coat", "-k", 5, "--picture", picture)
    assert (code, notes) == (0, "")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["1", "2", "3", "4", "5"]
    assert lines[0].endswith(".jpg")
    with Image.open(picture) as drawing:
        assert drawing.format == "PNG"


def test_search_finds_a_described_person(call, drawn, index):
    record = next(entry for entry in json.loads((drawn / "reid_raw.json").read_text()) if entry["split"] == "test")
    code, answer, _ = call("search", index, record["captions"][0], "-k", 4, "--json")
    assert code == 0
    assert [hit["score"] for hit in answer["hits"]] == sorted((hit["score"] for hit in answer["hits"]), reverse=True)
    assert any(f"{record['id']:05d}_" in hit["path"] for hit in answer["hits"])


def test_search_by_picture_and_folder(call, drawn, index):
    image = sorted((drawn / "imgs").rglob("*.jpg"))[3]
    code, answer, _ = call(
        "search", index, "--image", image, "-k", 3, "--json", "--where", f"folder={image.parent.name}"
    )
    assert code == 0
    assert answer["hits"][0]["path"] == str(image.resolve())
    assert {hit["metadata"]["folder"] for hit in answer["hits"]} == {image.parent.name}


def test_search_without_a_good_match_says_so(call, index):
    code, text, _ = call("search", index, "a man", "--threshold", "0.999")
    assert (code, text.startswith("no good match: the best of 32 images scores 0.")) == (1, True)


def test_index_into_the_folder_of_the_data_is_refused_and_check_finds_the_dataset_all_the_same(call, drawn, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(drawn, data)
    (tmp_path / "mine").mkdir()
    shutil.copyfile(next((drawn / "imgs").rglob("*.jpg")), tmp_path / "mine" / "1.jpg")
    for folder, output, words in (
        (data, data, "which is the folder of the images"),
        (data / "imgs", data, f"which is above the folder of the images, {data / 'imgs'}"),
        (tmp_path / "mine", data, "which is a dataset's folder"),
        (data, tmp_path / "mine", "which is a folder of images"),
    ):
        code, _, notes = call("index", folder, "--output", output)
        assert code == 2
        assert f"error: --output is {output}, {words}; a gallery needs a folder of its own" in notes
    assert not list(tmp_path.rglob("gallery.json"))
    (tmp_path / "mine" / "1.jpg").rename(tmp_path / "mine" / "._1.jpg")  # what a Mac leaves is no image
    assert call("index", data, "--output", tmp_path / "mine")[0] == 0
    assert call("index", data, "--output", data / "gallery")[0] == 0  # harmless
    assert call("index", data, "--output", data / "gallery")[0] == 0
    shutil.copytree(data / "gallery", data, dirs_exist_ok=True)  # as earlier versions let it be
    code, text, notes = call("check", data)
    assert (code, "the index" in text, "32 images" in text) == (0, False, True)
    assert "data holds a gallery too, which is not checked" in notes


def test_index_of_a_second_folder_says_what_is_there(call, drawn, tmp_path):
    for name, count in (("first", 2), ("second", 1)):
        (tmp_path / name / "cam").mkdir(parents=True)
        for image in sorted((drawn / "imgs").rglob("*.jpg"))[:count]:
            shutil.copyfile(image, tmp_path / name / "cam" / image.name)
    gallery = tmp_path / "gallery"
    assert "holds" not in call("index", tmp_path / "first", "--output", gallery)[2]
    code, text, notes = call("index", tmp_path / "second", "--output", gallery)
    assert (code, "1 new, 0 changed, 0 unchanged, 0 removed; 3 images in" in text) == (0, True)
    assert notes == (
        f"note: {gallery} holds 2 images of {tmp_path / 'first' / 'cam'} already, and those of "
        f"{tmp_path / 'second'} are added to them; for a gallery of its own, give another --output\n"
    )
    assert "holds" not in call("index", tmp_path / "second", "--output", gallery)[2]  # both are there by now
    code, text, _ = call("index", tmp_path / "second", "--output", tmp_path / "other")
    assert "1 image is indexed in" in text


def test_index_again_encodes_only_what_is_new(call, drawn, index, tmp_path):
    crops = tmp_path / "crops"
    shutil.copytree(drawn / "imgs", crops)
    call("index", crops, "--output", tmp_path / "own")
    one = next(crops.rglob("*.jpg"))
    shutil.copyfile(one, crops / "new.jpg")
    (crops / "broken.jpg").write_bytes(b"no image")
    code, answer, notes = call("index", crops, "--output", tmp_path / "own", "--json")
    assert (code, answer["added"], answer["unchanged"], answer["images"]) == (0, 1, 32, 33)
    assert answer["unreadable"] == [str((crops / "broken.jpg").resolve())]
    assert "warning: 1 of 34 images cannot be read" in notes
    one.unlink()
    assert call("index", crops, "--output", tmp_path / "own", "--prune", "--json")[1]["removed"] == 1
    code, text, _ = call("index", "--output", tmp_path / "own", "--remove", crops.resolve() / "new.jpg", 5)
    assert code == 0
    assert "30 images are left" in text


def test_index_lists_every_picture_that_it_cannot_read(call, drawn, tmp_path):
    crops = tmp_path / "crops"
    shutil.copytree(drawn / "imgs", crops)
    for number in range(12):
        (crops / f"broken_{number:02d}.jpg").write_bytes(b"no image")
    code, answer, _ = call("index", crops, "--output", tmp_path / "own", "--json")
    assert (code, answer["added"], answer["images"]) == (0, 32, 32)
    assert [path.rpartition("/")[2] for path in answer["unreadable"]] == [f"broken_{n:02d}.jpg" for n in range(12)]


def test_index_of_nothing_that_can_be_read_is_refused(call, drawn, tmp_path):
    (tmp_path / "crops").mkdir()
    assert call("index", tmp_path / "crops", "--output", tmp_path / "own")[0] == 2
    assert not (tmp_path / "own").exists()
    (tmp_path / "crops" / "broken.jpg").write_bytes(b"no image")
    for _ in range(2):
        code, _, notes = call("index", tmp_path / "crops", "--output", tmp_path / "own")
        assert code == 2
        assert "none of the images" in notes
    # The empty gallery that is left binds nobody to its model or storage.
    shutil.copyfile(next((drawn / "imgs").rglob("*.jpg")), tmp_path / "crops" / "1.jpg")
    other = ["--model", "promptreid-tiny", "--storage", "float16"]
    code, answer, _ = call("index", tmp_path / "crops", "--output", tmp_path / "own", *other, "--json")
    assert (code, answer["images"]) == (0, 1)
    assert call("index", tmp_path / "crops", "--output", tmp_path / "own", *other)[0] == 0  # as a killed run resumes
    code, _, notes = call("index", tmp_path / "crops", "--output", tmp_path / "own", "--storage", "float32")
    assert (code, "exists already and keeps its storage, float16; leave --storage out" in notes) == (2, True)


def test_index_of_what_was_removed_on_purpose_says_how_to_restore_it(call, drawn, tmp_path):
    crops, own = tmp_path / "crops", tmp_path / "own"
    crops.mkdir()
    for number, image in enumerate(sorted((drawn / "imgs").rglob("*.jpg"))[:4]):
        shutil.copyfile(image, crops / f"{number}.jpg")
    (crops / "broken.jpg").write_bytes(b"no image")
    assert call("index", crops, "--output", own)[0] == 0
    assert call("index", "--output", own, "--remove", f"{crops}/[0-9].jpg")[0] == 0
    code, text, notes = call("index", crops, "--output", own)
    assert (code, "1 of 5 images cannot be read" in notes) == (0, True)
    assert f"4 images are left out, as removed earlier; promptreid index --output {own} --restore IMAGE" in text
    assert call("index", "--output", own, "--restore", f"{crops}/*")[0] == 0
    assert "4 new, 0 changed, 0 unchanged, 0 removed; 4 images" in call("index", crops, "--output", own)[1]


def test_two_who_make_one_gallery_at_the_same_time_both_add_to_it(call, drawn, tmp_path, monkeypatch):
    from promptreid.cli import index_crops

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for number, image in enumerate(sorted((drawn / "imgs").rglob("*.jpg"))[:5]):
        shutil.copyfile(image, tmp_path / ("one" if number < 3 else "two") / f"{number}.jpg")
    real = index_crops.load_model

    def slow(*given, **options):
        monkeypatch.setattr(index_crops, "load_model", real)
        assert call("index", tmp_path / "two", "--output", tmp_path / "own")[0] == 0
        return real(*given, **options)

    monkeypatch.setattr(index_crops, "load_model", slow)
    code, answer, _ = call("index", tmp_path / "one", "--output", tmp_path / "own", "--json")
    assert (code, answer["added"], answer["images"]) == (0, 3, 5)


def test_gallery_that_is_being_built_is_added_to_but_not_replaced(call, drawn, tmp_path, monkeypatch):
    from promptreid.retrieval import editing

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for number, image in enumerate(sorted((drawn / "imgs").rglob("*.jpg"))[:5]):
        shutil.copyfile(image, tmp_path / ("one" if number < 3 else "two") / f"{number}.jpg")
    real, answers = editing.encode_images, []

    def encode(*given, **options):
        monkeypatch.setattr(editing, "encode_images", real)
        for words in (["--model", "promptreid-tiny"], ["--storage", "float16"], ["--model", TINY_ADAPTED]):
            answers.append(call("index", tmp_path / "two", "--output", tmp_path / "own", *words))
        return real(*given, **options)

    monkeypatch.setattr(editing, "encode_images", encode)
    code, answer, _ = call("index", tmp_path / "one", "--output", tmp_path / "own", "--json")
    assert [code for code, *_ in answers] == [2, 2, 0]
    assert "leave --model out to use promptreid-tiny-adapted, or make another gallery" in answers[0][2]
    assert "exists already and keeps its storage" in answers[1][2]
    assert (code, answer["added"], answer["images"]) == (0, 3, 5)


def test_removal_says_what_it_removed_and_waits_for_the_restoration(call, drawn, tmp_path):
    crops, own = tmp_path / "crops", tmp_path / "own"
    crops.mkdir()
    for number, image in enumerate(sorted((drawn / "imgs").rglob("*.jpg"))[:13]):
        shutil.copyfile(image, crops / f"{number:02}.jpg")
    assert call("index", crops, "--output", own)[0] == 0
    code, _, notes = call("index", "--output", own, "--remove", 0, "--restore", crops / "01.jpg")
    assert (code, "was not removed from the gallery" in notes, len(Gallery.load(own))) == (2, True, 13)
    _, text, _ = call("index", "--output", own, "--remove", crops / "0[01].jpg")
    assert text.splitlines() == [
        "removed 2 images:", f"  {crops / '00.jpg'}", f"  {crops / '01.jpg'}", f"11 images are left in {own}",
    ]  # fmt: skip
    code, _, notes = call("index", "--output", own, "--remove", "nothere.jpg", "--restore", crops / "01.jpg")
    assert (code, "the gallery has no image 'nothere.jpg'" in notes) == (2, True)
    answer = call("index", "--output", own, "--remove", f"{crops}/*", "--restore", crops / "01.jpg", "--json")[1]
    assert (answer["restored"], answer["removed"], len(answer["removed_images"])) == (1, 11, 11)
    assert call("index", crops, "--output", own, "--json")[1]["added"] == 1
    assert call("index", "--output", own, "--restore", f"{crops}/*", "--json")[1]["restored"] == 12
    assert call("index", crops, "--output", own, "--json")[1]["added"] == 12
    one = crops / "05.jpg"
    answer = call("index", "--output", own, "--remove", one, "--restore", one, "--json")[1]
    assert (answer["restored"], answer["removed"], answer["removed_images"]) == (1, 1, [str(one)])
    assert call("index", crops, "--output", own, "--json")[1]["added"] == 1


def test_removed_address_is_named_as_it_was_given(call, tmp_path):
    gallery = Gallery(None, ["a"], torch.eye(1))
    gallery.save(tmp_path / "own")
    gallery.add_features(torch.eye(1), ["s3://b/x.jpg"])
    assert "\n  s3://b/x.jpg\n" in call("index", "--output", tmp_path / "own", "--remove", "s3://b/x.jpg")[1]


@pytest.mark.parametrize("option", ["--threads", "--batch-size"])
def test_encoding_options_where_nothing_is_encoded_are_refused(call, index, option):
    code, _, notes = call("index", "--output", index, "--compact", option, 4)
    assert (code, f"{option} would do nothing here: give it with a folder" in notes) == (2, True)


def test_index_of_a_folder_that_cannot_be_read_says_so(call, drawn, tmp_path, monkeypatch):
    real = os.scandir
    (tmp_path / "crops" / "closed").mkdir(parents=True)
    for closed in (tmp_path / "crops", tmp_path / "crops" / "closed"):

        def scandir(path=".", closed=closed):
            if os.fspath(path) == str(closed):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        code, _, notes = call("index", tmp_path / "crops", "--output", tmp_path / "own")
        assert (code, f"the folder {closed} cannot be read (Permission denied)" in notes) == (2, True), notes


def test_index_of_a_folder_and_removal_at_once_are_refused(call, drawn, index):
    code, _, notes = call("index", drawn / "imgs", "--output", index, "--remove", "a.jpg")
    assert (code, "not both at once" in notes) == (2, True)


@pytest.mark.parametrize("number", ["²", "9" * 19, "9" * 20, pytest.param("9" * 5000, id="more than Python reads")])
def test_removal_of_a_number_that_no_image_can_have_is_refused(call, index, number):
    code, _, notes = call("index", "--output", index, "--remove", number)
    assert (code, notes.startswith(f"error: the gallery has no image '{number}'; nothing was removed")) == (2, True)


def test_output_into_a_pipe_that_closes_leaves_no_trace(fork, drawn, index):
    script = (
        "import os, sys\n"
        "from promptreid.cli.main import main\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 1); os.close(writer); os.close(reader)\n"
        f"sys.exit(main(['search', {str(index)!r}, 'a man', '-k', '3']))\n"
    )
    process = fork(script)
    assert process.communicate() == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("hour=9..12", "yard/b.jpg"),
        ("hour=..8.5", "gate/a.jpg"),
        ("time=2026-11-27..2026-11-27", "yard/b.jpg"),
        ("folder=yard*", "yard/b.jpg"),
        ("folder=y..z", "yard/b.jpg"),
        ("folder=gate", "gate/a.jpg"),
        ("mark=1..x", "gate/a.jpg"),
    ],
)
def test_search_by_ranges_and_beginnings(call, tmp_path, condition, words):
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0))
    metadata = [
        {"folder": "gate", "hour": 8, "time": "2026-11-26T08:00", "mark": "1..x"},
        {"folder": "yard/1", "hour": 9, "time": "2026-11-27T09:00", "mark": "y"},
    ]
    gallery = Gallery(model, ["gate/a.jpg", "yard/b.jpg"], torch.eye(2, 128), metadata=metadata)
    gallery.notes["model"] = {"model": "promptreid-tiny", "pretrained": "generated", "image_size": [96, 48]}
    gallery.save(tmp_path / "own")
    code, answer, _ = call("search", tmp_path / "own", "a man", "--where", condition, "--json")
    assert (code, [hit["path"] for hit in answer["hits"]]) == (0, [words])


def test_index_is_compacted(call, index):
    gallery = Gallery.load(index)
    for number in range(3):
        gallery.add_features(torch.eye(1, 128), [f"new/{number}"])
    assert len(list(index.glob("features-*"))) == 4
    assert call("index", "--output", index, "--compact")[0] == 0
    assert len(list(index.glob("features-*"))) == 1
    assert len(Gallery.load(index)) == len(gallery)


def test_index_exports(call, index, tmp_path):
    assert call("index", "--output", index, "--export", tmp_path / "features.npz")[0] == 0
    assert (tmp_path / "features.npz").is_file()


def test_evaluate_prints_a_table_and_writes_files(call, drawn, tmp_path):
    code, text, _ = call("evaluate", drawn, "--output", tmp_path / "out")
    assert code == 0
    assert "rank1" in text
    assert (tmp_path / "out" / "ranking.png").is_file()
    code, answer, _ = call("evaluate", drawn, "--json", "--split", "val")
    assert (code, answer["split"], answer["scores"]["rank1"]) == (0, "val", 1.0)


def test_train_then_search_with_the_model_it_saved(call, drawn, tmp_path):
    arguments = ["train", drawn, "--output", tmp_path / "run", "--epochs", 1, 1, "--batch-size", 8]
    code, answer, notes = call(*arguments, "--steps-per-epoch", 3, "--json")
    assert code == 0, notes
    for stage in ("stage_one", "stage_two"):
        assert len((tmp_path / "run" / stage / "steps.jsonl").read_text().splitlines()) == 3
    assert list(answer["results"]) == ["zero_shot", "stage_one", "stage_two"]
    written = {
        "results.json",
        "metrics.json",
        "model",
        "ranking.png",
        "similarities.png",
        "feature_map.png",
        "curves.png",
    }
    assert written <= {path.name for path in (tmp_path / "run").iterdir()}
    model = tmp_path / "run" / "model"
    card = (model / "README.md").read_text()
    for words in (
        "| zero shot |",
        "| stage two |",
        "Checkpoint: epoch with the best validation mAP.",
        "| batch size | 8 |",
        "| stage one epochs | 1 |",
        "![What four captions find](ranking.png)",
        "licence: mit",
    ):
        assert words in card
    assert (model / "ranking.png").is_file()
    code, text, _ = call("push", model, "somebody/mine", "--dry-run")
    assert 'load_prompts("somebody/mine")' in text
    assert "ranking.png" in text
    assert "your-name" not in text
    assert call("index", drawn / "imgs", "--output", tmp_path / "own", "--model", model)[0] == 0
    assert call("search", tmp_path / "own", "a man", "-k", 1)[0] == 0
    code, _, notes = call("search", tmp_path / "own", "a man", "--model", "promptreid-tiny")
    assert code == 2
    assert "was encoded by another model" in notes


def test_a_command_that_a_signal_stopped_says_so_in_json_too(call, drawn, tmp_path, monkeypatch):
    def stop(console, /, **settings):
        raise SystemExit(143)  # as the trainer leaves when it gets SIGTERM

    monkeypatch.setattr(train_command, "run", stop)
    code, answer, notes = call("train", drawn, "--output", tmp_path / "run", "--json")
    assert (code, answer["exit_code"]) == (143, 143)
    assert answer["error"].startswith("stopped by a signal; the same command resumes")
    assert notes == f"error: {answer['error']}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index"], "give the folder of images to index"),
        (["index", "nowhere"], "there is no folder"),
        (["index", ".", "--export", "a.csv"], "--export is a.csv, which ends in .csv, expected .parquet or .npz"),
        (["index", ".", "--model", "ViT-B-61", "--pretrained", "openai"], "open_clip has no model named 'ViT-B-61'"),
        (["index", ".", "--model", "ViT-B-16"], "needs --pretrained TAG"),
        (["index", ".", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["index", "--output", "none", "--remove", "a.jpg"], "there is no gallery in none"),
        (["search", "nowhere", "a man"], "there is no gallery in nowhere"),
        (
            ["search", "nowhere"],
            "there is no gallery in nowhere; make one of a folder of crops:",
        ),
        (["evaluate", "nowhere"], "nowhere"),
        (["check", "nowhere"], "nowhere"),
        (["train", "nowhere", "--output", "out"], "nowhere"),
        (["push", "nowhere", "user/name"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()  # an empty folder is found before all else
    code, text, notes = call(*arguments)
    assert (code, text) == (2, "")
    assert words in notes
    assert "Traceback" not in notes
    assert notes.splitlines()[-1].startswith("error: ")
    code, answer, _ = call(*arguments, "--json")
    assert answer == {"error": notes.splitlines()[-1].removeprefix("error: "), "exit_code": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threshold", "high"], "--threshold is 'high', expected a number"),
        (["--where", "folder"], "--where is 'folder', expected KEY=VALUE"),
        (["--where", "camera=1"], "no image of the gallery has camera; known are: folder"),
        (["-k", "0"], "k is 0"),
        (["--where", "hour=17..8"], "no image of the gallery has hour"),
        (["--where", "folder=z..a"], "--where has the range z..a, whose start is after its end; swap them"),
        (["--where", "folder=nowhere"], "no image of the gallery has folder nowhere; known are: "),
    ],
)
def test_search_with_bad_settings_is_refused(call, index, arguments, words):
    code, _, notes = call("search", index, "a man", *arguments)
    assert code == 2
    assert words in notes


def test_search_by_an_image_that_is_not_there_or_without_the_option_says_what_to_do(call, drawn, index):
    code, _, notes = call("search", index, "--image", "nothere.jpg")
    assert (code, "--image is nothere.jpg, but there is no such file; check the path" in notes) == (2, True)
    code, _, notes = call("search", index, "crops/p0.jpg")
    assert (code, "give pathlib.Path('crops/p0.jpg'), or --image crops/p0.jpg on the command line" in notes) == (
        2,
        True,
    )


def test_index_names_what_is_gone_and_what_was_removed(call, drawn, tmp_path):
    crops, own = tmp_path / "crops", tmp_path / "own"
    for path in sorted((drawn / "imgs").rglob("*.jpg"))[:6]:
        (crops / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, crops / path.parent.name / path.name)
    call("index", crops, "--output", own)
    gone, removed = sorted(crops.rglob("*.jpg"))[:2]
    gone.unlink()
    text = call("index", "--output", own, "--remove", crops / "*" / removed.name)[1]
    assert text == f"removed 1 image:\n  {removed}\n5 images are left in {own}\n"
    text = call("index", crops, "--output", own)[1]
    assert f"1 indexed image is no longer on the disk; promptreid index {crops} --output {own} --prune removes" in text
    assert f"1 image is left out, as removed earlier; promptreid index --output {own} --restore IMAGE" in text
    assert {f"  {gone}", f"  {removed}"} <= set(text.splitlines())
    assert call("index", "--output", own, "--restore", removed, "--json")[1]["restored"] == 1
    assert call("index", crops, "--output", own, "--json")[1]["added"] == 1
    (crops / "one").mkdir()
    shutil.copyfile(removed, crops / "one" / "new.jpg")
    code, _, notes = call("index", crops / "one", "--output", own, "--prune")
    assert (code, "of 6 images" in notes, "--prune-anyway" in notes) == (2, True, True)
    assert call("index", crops / "one", "--output", own, "--prune-anyway", "--json")[1]["images"] == 1


def test_check_of_an_index_finds_damage(call, index):
    assert call("check", index)[:2] == (0, f"the index {index} is whole\n")
    (features,) = index.glob("features-*")
    content = bytearray(features.read_bytes())
    content[-1] ^= 1
    features.write_bytes(content)
    code, answer, _ = call("check", index, "--json")
    assert (code, answer["ok"], len(answer["problems"])) == (1, False, 1)


@pytest.mark.slow  # those whose output cannot be written are processes of their own too
def test_command_works_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "promptreid", "search", str(tmp_path), "a man"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "there is no gallery" in done.stderr
    assert "Traceback" not in done.stderr

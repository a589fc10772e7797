import pytest


@pytest.fixture
def layout_example(run_example):
    return run_example("A data layout")


def test_layout_reads_every_record(layout_example, capsys):
    people = layout_example.people
    assert people.summary().startswith("people: train 8 persons, 32 images, 64 captions; val 4 persons")
    record = people.test.records[0]
    assert record.path.read_bytes()
    assert record.path.parent.name == "photos"
    assert len(record.captions) == 2


def test_layout_names_a_missing_image(layout_example, tmp_path):
    from promptreid.errors import DatasetError

    (tmp_path / "data/people/photos/0003.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 64 images are missing below data/people/photos .*0003\.jpg"):
        layout_example.load_dataset("data/people", layout=layout_example.TsvLayout())


def test_layout_names_the_record_with_an_unknown_split(layout_example, tmp_path):
    from promptreid.errors import DatasetError

    table = tmp_path / "data/people/people.tsv"
    table.write_text(table.read_text().replace("\ttest\t", "\texam\t", 1))
    with pytest.raises(DatasetError, match=r"people\.tsv, record 48: .*exam"):
        layout_example.load_dataset("data/people", layout=layout_example.TsvLayout())


def test_layout_separator_in_a_caption_is_no_end_of_a_line(layout_example, tmp_path):
    table = tmp_path / "data/people/people.tsv"
    lines = table.read_text(encoding="utf-8").split("\n")
    table.write_text("\n".join([f"{lines[0]}\u2028in red", *lines[1:]]), encoding="utf-8")
    people = layout_example.load_dataset("data/people", layout=layout_example.TsvLayout())
    assert people.train.records[0].captions[-1].endswith("\u2028in red")


def test_model_trains_on_the_data_and_is_evaluated(layout_example, shipped, tmp_path):
    import copy

    from promptreid import Trainer, TwoStageSchedule, evaluate
    from promptreid.data import CaptionedImages

    model, people = copy.deepcopy(shipped[0]), layout_example.people
    pairs = CaptionedImages(people.train, transform=model.eval_transform, tokenizer=model.tokenizer)
    [stage, _] = TwoStageSchedule(model, num_identities=people.train.num_identities, stage_one_epochs=1)
    Trainer(model, [stage], train_data=pairs, batch_size=32, output_dir=tmp_path / "run", device="cpu").fit()
    scores = evaluate(model, people.test)
    assert 0 <= scores.text_to_image.mAP <= 1

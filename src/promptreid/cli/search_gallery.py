"""`promptreid search`: finds the images that a sentence or an image describes."""

import argparse
import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptreid.cli.argument_types import file_to_write, gallery_place, some_path, whole
from promptreid.cli.conditions import add_where_argument, as_where
from promptreid.cli.options import (
    ModelArguments,
    ModelChoice,
    add_model_arguments,
    check_file,
    chosen_model,
    load_model,
    refuse_unused,
)
from promptreid.cli.output import Output, print_line
from promptreid.cli.typed_sentences import at_terminal, in_parts, read_sentences, typed_sentences
from promptreid.defaults import BATCH_SIZE, GALLERY_FILE, NUM_HITS, is_gallery, is_store
from promptreid.errors import CheckpointError, DatasetError, ModelMismatchError, counted, shell_word

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from promptreid.evaluation.calibration import Calibration
    from promptreid.retrieval.gallery import Gallery
    from promptreid.retrieval.stored_gallery import StoredGallery
    from promptreid.retrieval.table import Hit

DESCRIPTION = """Search a gallery by a sentence, or by an image. Prints score and path of the best, and draws them with
--picture. Without a sentence it asks for one after another and keeps the model loaded; from a pipe it reads one per
line. Exit code 1 if nothing reaches the threshold."""
NEEDS = [("picture", "matplotlib", "viz")]

_ROWS = 20  # sentences in a picture: more make an image that no viewer opens
_COLUMNS = ("query", "rank", "score", "id", "path", "missing")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("index", type=gallery_place, help="folder that `promptreid index` made, or a store's address")
    parser.add_argument("sentence", nargs="?", help='such as "a woman in a red coat with a black backpack"')
    parser.add_argument("--image", type=some_path, help="search by this image instead of a sentence")
    parser.add_argument(
        "--queries", type=some_path, metavar="FILE", help="search by every sentence of a file, one per line"
    )
    parser.add_argument("-k", type=whole(1), default=NUM_HITS, help="how many at most; default %(default)s")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        help='lowest score to show, such as 0.3; or "calibrated", if the index was calibrated',
    )
    add_where_argument(
        parser,
        "only images with this, such as folder=cam_a; hour=8..17 and time=2026-11-26.. are ranges, "
        "'folder=roof/*' is what begins with roof/, and 'folder=*_a' what ends with _a, which a store does not take",
    )
    parser.add_argument(
        "--exact", action="store_true", help="in a store, compare every image instead of those that its index proposes"
    )
    parser.add_argument("--csv", action="store_true", help="print a table with one row per hit, for spreadsheets")
    parser.add_argument("--picture", type=file_to_write(".png"), metavar="FILE", help="draw the hits into a PNG file")
    add_model_arguments(parser, default="the one that made the index")


@dataclass(frozen=True)
class _Answer:
    """The result of one query: `best` is the gallery's highest score, `hits` are those that reach the threshold."""

    query: str
    best: float
    hits: "list[Hit]"


def run(
    console: Output,
    /,
    *,
    index: Path | str,
    sentence: str | None,
    image: Path | None,
    queries: Path | None,
    k: int,
    threshold: float | str | None,
    where: list[tuple[str, str]],
    exact: bool,
    csv: bool,
    picture: Path | None,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Search the index."""
    if sum(given is not None for given in (sentence, image, queries)) > 1:
        raise ValueError("give one of a sentence, --image FILE and --queries FILE")
    if image is not None and threshold == "calibrated":
        raise ValueError(
            "--threshold calibrated was measured with sentences, and --image scores higher than they do; give a "
            "number, or leave --threshold out"
        )
    if sentence is not None and not sentence.strip():
        raise ValueError("the query is empty; describe the person, such as 'a man in a blue jacket'")
    if csv and console.as_json:
        raise ValueError("give --csv or --json, not both")
    check_file("--image", image)
    check_file("--queries", queries)
    if not is_store(index):
        if sentence is None and " " in str(index) and not os.path.exists(index):
            raise ValueError(f'name the gallery first: promptreid search gallery "{index}"')
        check_gallery_folder(Path(index), "search", sentence)
        refuse_unused({"exact": exact}, "it goes with a store; in a folder every image is compared")
    sentences = None if queries is None else read_sentences(queries)
    from promptreid.model.encoding import check_words

    check_words(sentence, name="the query")
    shown = sentence if image is None else _opened_image(image)
    gallery = open_gallery(index, model, where, threshold, searched=True)
    search = _Search(console, gallery, k, threshold, where, as_csv=csv, exact=exact)
    if shown is not None:
        answers = [search.answer(shown, title=sentence or f"like {image and image.name}", is_image=image is not None)]
        console.record(query=answers[0].query, **search.entry(answers[0]))
    else:
        answers = search.answer_each(
            sentences if sentences is not None else typed_sentences(console, len(search.gallery))
        )
    console.record(threshold=search.lowest, calibration=None if image is not None else _as_dict(search.calibration))
    console.record(model=model["model"] or search.gallery.notes["model"]["model"])
    if picture is not None:
        _draw(console, search, picture, [answer for answer in answers if answer.hits])
    return 0 if any(answer.hits for answer in answers) else 1


def _opened_image(path: Path) -> Any:
    from promptreid.data.images import open_image
    from promptreid.retrieval.encode import unusable_query

    try:
        return open_image(path)
    except DatasetError as error:
        raise unusable_query(error) from error


def _as_dict(calibration: "Calibration | None") -> dict[str, Any] | None:
    return None if calibration is None else asdict(calibration)


class _Search:
    """A loaded gallery, and what every query to it has in common.

    Args:
        console: Where answers are shown, and those to several sentences recorded.
        gallery: The gallery.
        k: Hits at most.
        threshold: The lowest score to show.
        where: Conditions.
        as_csv: Print a table.
        exact: Compare every image of a store.
    """

    def __init__(
        self,
        console: Output,
        gallery: "Gallery | StoredGallery",
        k: int,
        threshold: float | str | None,
        where: Sequence[tuple[str, str]],
        *,
        as_csv: bool,
        exact: bool = False,
    ) -> None:
        from promptreid.retrieval.gallery_state import lowest_score

        self._console = console
        self.gallery, self.calibration, self._k = gallery, gallery.calibration, k
        self.lowest = None if threshold is None else lowest_score(self.calibration, threshold)
        self._find: Callable[..., Any] = partial(gallery.search, exact=True) if exact else gallery.search
        self._where = as_where(where, _listed(gallery)) or None
        # A table is the only thing on standard output; everything else goes to standard error.
        self.say = (lambda *lines: [console.note(line) for line in lines]) if as_csv else console.say
        self._keys = _keys(gallery) if as_csv else None
        if self._keys is not None:
            print_line(_row([*_COLUMNS, *self._keys]))

    def answer(self, query: Any, *, title: str, is_image: bool) -> _Answer:
        """Answer one query and show it."""
        return self._show(title, self._find(query, self._k, where=self._where), is_image=is_image)

    def answer_each(self, sentences: Iterable[str]) -> list[_Answer]:
        """Answer sentences, and record each answer at once: those of a list together, others as soon as each comes."""
        answers: list[_Answer] = []
        results: list[dict[str, Any]] = []
        self._console.record(results=results)  # with what it holds when an error or a signal ends the search
        size = BATCH_SIZE if isinstance(sentences, list) else 1
        for part in in_parts(sentences, size):
            for sentence, found in zip(part, self._find(part, self._k, where=self._where), strict=True):
                if self._keys is None and (size > 1 or not at_terminal()):
                    self.say(sentence)
                answers.append(self._show(sentence, found))
                results.append({"query": sentence, **self.entry(answers[-1])})
        return answers

    def entry(self, answer: _Answer) -> dict[str, Any]:
        """The answer's entry in JSON."""
        return {"best_score": answer.best, "hits": as_entries(answer.hits)}

    def _show(self, title: str, found: "list[Hit]", *, is_image: bool = False) -> _Answer:
        hits = found if self.lowest is None else [hit for hit in found if hit.score >= self.lowest]
        answer = _Answer(title, found[0].score, hits)
        if self._keys is not None:
            for rank, hit in enumerate(hits, start=1):
                known = [hit.metadata.get(key, "") for key in self._keys]
                path, missing = hit.address or hit.path, str(_gone(hit)).lower()
                print_line(_row([title, rank, f"{hit.score:.6f}", hit.id, path, missing, *known]))
        else:
            self.say(*as_lines(hits))
        self.say(*self._verdict(answer, is_image=is_image))
        return answer

    def _verdict(self, answer: _Answer, *, is_image: bool) -> list[str]:
        """Explain the scores, by the given threshold or else the calibrated one, which is for sentences."""
        from promptreid.retrieval.gallery_state import threshold_in_words

        if not answer.hits:
            images = counted(len(self.gallery), "image")
            return [f"no good match: the best of {images} scores {answer.best:.3f}, below {self.lowest:.3f}"]
        if self.lowest is not None or self.calibration is None or is_image:
            return []
        threshold = self.calibration.threshold
        reaching = sum(hit.score >= threshold for hit in answer.hits)
        if reaching:
            verb = "reaches" if reaching == 1 else "reach"
            return [f"{reaching} of these {verb} {threshold:.3f}, {threshold_in_words(self.calibration)}"]
        # A search without hits means something only if people who are in the gallery are mostly found.
        verdict = "probably nobody matches" if (self.calibration.hit_rate or 0) >= 0.5 else "no match stands out"
        return [
            f"{verdict}: the best score is {answer.best:.3f}, and such scores also occur for people who are not there; "
            f"one of {threshold:.3f} or more would stand out"
        ]


def _listed(gallery: "Gallery | StoredGallery") -> "Gallery | None":
    """The gallery whose images can all be looked at; `None` for a store, which may have a billion."""
    from promptreid.retrieval.gallery import Gallery

    return gallery if isinstance(gallery, Gallery) else None


def _keys(gallery: "Gallery | StoredGallery") -> list[str]:
    listed = _listed(gallery)
    return sorted(set[str]().union(*listed.metadata)) if listed is not None else getattr(gallery, "keys")  # noqa: B009


def as_lines(hits: "Sequence[Hit]") -> list[str]:
    """Rank, score and path of each hit, for people: a path below the working folder begins there."""
    gone = "  (no file there)"
    shown = [f"{hit.address or _short(hit.path)}{gone if _gone(hit) else ''}" for hit in hits]
    return [f"{rank:>3}  {hit.score:6.3f}  {path}" for rank, (hit, path) in enumerate(zip(hits, shown, strict=True), 1)]


def _short(path: Path) -> Path:
    with suppress(ValueError, OSError):
        return path.relative_to(Path.cwd())
    return path


def as_entries(hits: "Sequence[Hit]") -> list[dict[str, Any]]:
    """Hits for JSON; `missing` says whether the file no longer exists."""
    return [{**hit.as_dict(), "missing": _gone(hit)} for hit in hits]


def _gone(hit: "Hit") -> bool:
    return not hit.path.is_file()


def _row(values: Sequence[Any]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\r\n").writerow(values)  # before 3.13, what is not in it would not be quoted
    return stream.getvalue().removesuffix("\r\n")


def _draw(console: Output, search: _Search, picture: Path, answers: Sequence[_Answer]) -> None:
    """Draw what was found, one row a query."""
    from promptreid.evaluation.pictures.ranking import Ranking, draw_ranking

    if not answers:
        return
    rankings = [
        Ranking(answer.query, [hit.path for hit in answer.hits], [hit.score for hit in answer.hits])
        for answer in answers[:_ROWS]
    ]
    left_out = len(answers) - len(rankings)
    more = f", without the last {left_out}: {_ROWS} queries are drawn at most" if left_out else ""
    search.say(f"drawn in {draw_ranking(picture, rankings)}{more}")
    console.record(picture=str(picture))


def check_gallery_folder(folder: Path, command: str, second: object) -> None:
    """Refuse a folder without a gallery, before torch is imported.

    Args:
        folder: The first argument.
        command: What is called.
        second: The second argument, which may be the gallery instead.

    Raises:
        ValueError: The folder has no gallery, or cannot be read.
    """
    if is_gallery(folder):
        return
    _refuse_closed(folder)
    named = shell_word(folder)
    if second is not None and is_gallery(str(second)):
        raise ValueError(f"the gallery comes first: promptreid {command} {shell_word(second)} {named}")
    with suppress(OSError):
        galleries = {path.name: path for path in folder.parent.iterdir() if is_gallery(path)}
        for near in get_close_matches(folder.name, galleries, n=1):
            raise ValueError(f"there is no gallery in {folder}; did you mean {galleries[near]}?")
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the gallery's folder, which promptreid index makes")
    given = f"{named} --output gallery" if folder.is_dir() else f"CROPS --output {named}"
    raise ValueError(f"there is no gallery in {folder}; make one of a folder of crops: promptreid index {given}")


def _refuse_closed(folder: Path) -> None:
    try:
        os.stat(folder / GALLERY_FILE)
    except PermissionError as error:
        raise ValueError(
            f"the gallery {folder} cannot be read ({error.strerror}); ask its owner to let you read it"
        ) from error
    except (OSError, ValueError):  # no such file; a sentence, which is too long a name
        pass


def open_gallery(
    directory: Path | str,
    options: ModelArguments,
    where: Sequence[tuple[str, str]] = (),
    threshold: float | str | None = None,
    *,
    searched: bool = False,
) -> "Gallery | StoredGallery":
    """Load an index with the model that made it, or with the one that the arguments name.

    Args:
        directory: The index: a folder, or a store.
        options: The model's.
        where: Conditions that an image must be able to fulfil, or the model is not loaded.
        threshold: `"calibrated"` for an index that must have been.
        searched: Refuse an index without images, before the model is loaded.

    Raises:
        CheckpointError: The index is damaged or of another model.
        ValueError: The index does not say which model made it, options are given that go with another one, or the
            folder holds a gallery and a store.
    """
    from promptreid.retrieval.gallery import Gallery
    from promptreid.retrieval.gallery_folder import check_one_kind
    from promptreid.retrieval.gallery_state import lowest_score
    from promptreid.retrieval.stored_gallery import StoredGallery

    check_one_kind(directory)
    load = StoredGallery.load if is_store(directory) else Gallery.load
    if options["model"] is None:
        own = {name: options[name] for name in ("pretrained", "image_size", "revision")}
        refuse_unused(own, f"{directory} goes with the model that made it, or with --model")
    gallery = load(directory)
    if searched and len(gallery) == 0:
        option = "--store" if is_store(directory) else "--output"
        more = f"promptreid index CROPS {option} {shell_word(directory)}"
        raise ValueError(f"{directory} is empty; add images first: {more}")
    for condition in where:
        gallery.check_filter(as_where([condition], _listed(gallery)))
    lowest_score(gallery.calibration, threshold)
    noted = gallery.notes.get("model")
    if options["model"] is not None:
        choice = chosen_model(options)
    elif isinstance(noted, dict):
        size = noted.get("image_size")
        size = None if size is None else (size[0], size[1])
        choice = ModelChoice(noted["model"], noted.get("pretrained"), size, noted.get("revision"))
    else:
        raise ValueError(f"{directory} does not say which model made it; give --model")
    try:
        return load(directory, load_model(choice, device=options["device"]))
    except ModelMismatchError as error:
        raise CheckpointError(_other_model(directory, options, noted, error.found)) from error


def _other_model(directory: Path | str, options: ModelArguments, noted: Any, found: str) -> str:
    """The difference that was found, and the command that mends it."""
    own = options["model"]
    again = f"promptreid index CROPS {'--store' if is_store(directory) else '--output'} OTHER --model"
    if own is None:
        name = noted["model"]
        return f"{found}: {name} has changed since; make another gallery: {again} {shell_word(name)}"
    first = f"leave --model out to use {noted['model']}" if isinstance(noted, dict) else "give --model that one"
    weights = f" --pretrained {shell_word(options['pretrained'])}" if options["pretrained"] else ""
    return f"{found}; {first}, or make another gallery: {again} {shell_word(own)}{weights}"


def _threshold(text: str) -> float | str:
    try:
        if text == "calibrated" or -1 <= float(text) <= 1:
            return text if text == "calibrated" else float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'is {text!r}, expected a number in [-1, 1] or "calibrated"')

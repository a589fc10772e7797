import dataclasses

from promptreid.demo.clerk import Visit
from promptreid.demo.crops import Crops
from promptreid.demo.desk import Desk
from promptreid.demo.finder import Finder
from promptreid.demo.opening import Opening, open_with


def test_open_with_known_sentences_answers_the_first_example(desk: Desk) -> None:
    opening = open_with(desk)
    assert opening.sentence == desk.examples("colours")[0]
    assert [len(column.crops) for column in opening.columns] == [6, 6]
    assert opening.phrase == opening.phrases[1]
    assert opening.phrase.endswith(" clothes")
    assert len(opening.maps) == 2
    visit = Visit.beginning(opening)
    assert (visit.gallery, visit.query) == ("colours", opening.sentence)
    assert visit.chosen == visit.places[0][0] == opening.columns[0].places[0]


def test_open_with_a_gallery_that_knows_no_sentence_is_empty(finder: Finder, crops: Crops) -> None:
    other = Finder(dataclasses.replace(crops, captions={}), finder.versions, progress=False)
    opening = open_with(Desk([other]))
    assert opening == Opening("colours")
    assert Visit.beginning(opening) == Visit("colours")

"""What can be seen of a person from one side."""

from dataclasses import replace

from promptreid.synthetic.person import NONE, Person


def as_seen(person: Person, view: str, *, shoes: bool = True, small_things: bool = True) -> Person:
    """`person` without what does not show, with kinds that do not show put into the kind that does.

    Args:
        person: Who it is.
        view: `"front"`, `"back"` or `"side"`.
        shoes: Whether the feet are in the picture.
        small_things: Whether the picture is sharp enough for glasses and for the kind of shoes.

    Returns:
        What a truthful caption may say; what is hidden is `"none"`.
    """
    changes: dict[str, str] = {}
    if view == "back" and person.hat != NONE:
        changes["hat"] = "hat"  # a cap's brim points away
    if person.hat != NONE and person.hair_length == "bald":
        changes["hair_length"] = NONE
    if view == "back" or not small_things:
        changes["glasses"] = NONE
    if view != "front":
        changes["inner_colour"] = NONE
        if person.upper_pattern == "printed":
            changes |= {"upper_pattern": "plain", "pattern_colour": NONE}
    if person.bag == "backpack" and view == "front":
        changes |= {"bag": NONE, "bag_colour": NONE}
    # Collar, hood and plain neck are all that tells these three apart, and long hair falls over them.
    hairy = person.hair_length in ("long", "shoulder length")
    if view != "front" and hairy and person.upper_kind in ("shirt", "hoodie", "sweater"):
        changes["upper_kind"] = "top"
    if not shoes:
        changes |= {"shoe_kind": NONE, "shoe_colour": NONE}
    elif not small_things:
        changes["shoe_kind"] = "shoes"
    return replace(person, **changes)

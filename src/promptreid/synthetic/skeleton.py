"""Where the joints of a walking person are."""

import math
from dataclasses import dataclass

from promptreid.synthetic.pen import Point
from promptreid.synthetic.person import Person

_HALF_WIDTHS = {"slim": 0.088, "average": 0.112, "heavy": 0.152}


@dataclass(frozen=True)
class Limb:
    """Shoulder, elbow and hand, or hip, knee and ankle."""

    root: Point
    joint: Point
    end: Point

    @property
    def points(self) -> tuple[Point, Point, Point]:
        """From the body outwards."""
        return self.root, self.joint, self.end


@dataclass(frozen=True)
class Skeleton:
    """Joints in shares of the body's height; limbs in drawing order, the far or left one first.

    Attributes:
        head: Centre of the head.
        head_size: Half-axes of the head.
        neck: Base of the neck.
        pelvis: Middle of the hips.
        shoulders: Half the width at the shoulders.
        hips: Half the width at the hips.
        arms: Both arms.
        legs: Both legs.
    """

    head: Point
    head_size: Point
    neck: Point
    pelvis: Point
    shoulders: float
    hips: float
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]


def pose(person: Person, view: str, facing: int, phase: float) -> Skeleton:
    """The skeleton of `person` at `phase` (0 to 1) of the walking cycle; `facing` counts from the side only."""
    half = _HALF_WIDTHS[person.build] * (1.1 if person.age == "child" else 1.0)
    side = view == "side"
    shoulders = half * (1.12 if person.gender == "man" else 0.92) * (0.62 if side else 1.0)
    hips = half * (0.82 if person.gender == "man" else 1.02) * (0.66 if side else 1.0)
    head_height = 0.185 if person.age == "child" else 0.128
    bent = person.age == "elderly"  # old people stoop
    lean = 0.075 * facing if bent and side else 0.0
    drop = 0.03 if bent else 0.0
    neck = (lean, head_height + 0.02 + drop)
    pelvis = (0.0, 0.54 if person.age == "child" else 0.51)
    arms = [_arm(sign, neck, shoulders, phase, facing if side else 0) for sign in (-1, 1)]
    legs = [_leg(sign, pelvis, hips, phase, facing if side else 0) for sign in (-1, 1)]
    return Skeleton(
        head=(lean * 1.35, head_height / 2 + drop),
        head_size=(head_height * 0.40, head_height * 0.5),
        neck=neck,
        pelvis=pelvis,
        shoulders=shoulders,
        hips=hips,
        arms=(arms[0], arms[1]),
        legs=(legs[0], legs[1]),
    )


def _turn(start: Point, length: float, angle: float, facing: int) -> Point:
    """The point `length` below `start`, swung forwards by `angle`."""
    return start[0] + facing * length * math.sin(angle), start[1] + length * math.cos(angle)


def _arm(sign: int, neck: Point, shoulders: float, phase: float, facing: int) -> Limb:
    swing = -sign * math.sin(2 * math.pi * phase)
    if facing:
        root = (neck[0], neck[1] + 0.03)
        elbow = _turn(root, 0.165, 0.5 * swing, facing)
        return Limb(root, elbow, _turn(elbow, 0.15, 0.5 * swing + 0.3, facing))
    root = (neck[0] + sign * shoulders * 0.9, neck[1] + 0.03)
    elbow = (root[0] + sign * 0.03, root[1] + 0.16)
    return Limb(root, elbow, (elbow[0] + sign * 0.012, elbow[1] + 0.15 * (1 - 0.25 * max(0.0, swing))))


def _leg(sign: int, pelvis: Point, hips: float, phase: float, facing: int) -> Limb:
    angle = 2 * math.pi * phase
    swing, length = sign * math.sin(angle), (0.95 - pelvis[1]) / 2
    if facing:
        knee = _turn(pelvis, length, 0.42 * swing, facing)
        bend = 0.08 + 0.55 * max(0.0, sign * math.cos(angle))  # the leg that comes forward is bent
        return Limb(pelvis, knee, _turn(knee, length, 0.42 * swing - bend, facing))
    root = (pelvis[0] + sign * hips * 0.52, pelvis[1])
    shorter = 1 - 0.1 * max(0.0, swing)  # the foot that is farther away
    knee = (root[0] + sign * 0.006, root[1] + length)
    return Limb(root, knee, (knee[0], knee[1] + length * shorter))

"""Made scenes whose answers are known: one to three coloured shapes, and captions that are true of them.

A random generator goes in; a `Scene` comes out, and a picture of it. A caption names every object of its scene, with a
relation or a place, and may still be true of other scenes: `fits` says of which. One shape of each colour is held out
from training; a scene that shows such a pair is an `unseen_pair`.

A relation holds if the centres differ by more than `RELATION_PX` on its axis. A caption fits a scene in the closed
sense: the scene has these objects and no others, and under some assignment every size that is named, every relation and
the place are true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random

from PIL import Image, ImageDraw

SIZE_PX, SCALE = 64, 2
RELATION_PX = 10
NUM_PHRASINGS = 4

COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "red": ((215, 35, 40), ("red",)),
    "orange": ((245, 140, 20), ("orange",)),
    "yellow": ((240, 220, 40), ("yellow",)),
    "green": ((40, 160, 60), ("green",)),
    "cyan": ((50, 200, 215), ("cyan", "turquoise")),
    "blue": ((35, 75, 205), ("blue",)),
    "purple": ((140, 50, 170), ("purple", "violet")),
    "black": ((30, 30, 30), ("black",)),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
}
SIZES: dict[str, tuple[float, tuple[str, ...]]] = {
    "small": (5.5, ("small", "little", "tiny")),
    "medium": (8.5, ("medium", "average")),
    "large": (12.0, ("large", "big", "huge")),
}
# (axis, sign): true of (a, b) if sign * (a - b) > RELATION_PX on that axis; y grows downwards.
RELATIONS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "left": (0, -1, ("left of", "to the left of")),
    "right": (0, 1, ("right of", "to the right of")),
    "above": (1, -1, ("above", "over")),
    "below": (1, 1, ("below", "under")),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
HELD_OUT = {colour: list(SHAPES)[(3 * i + 1) % len(SHAPES)] for i, colour in enumerate(COLOURS)}


@dataclass(frozen=True)
class Thing:
    """One object: what it is, and its centre in pixels from the upper left."""

    colour: str
    shape: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Claim:
    """What a caption says: things (size "" where it is left out), relations (first, name, second), a single's place."""

    things: tuple[tuple[str, str, str], ...]  # (colour, shape, size)
    relations: tuple[tuple[int, str, int], ...] = ()
    place: str = ""

    def swapped(self) -> Claim:
        return replace(self, relations=tuple((a, OPPOSITE[r], b) for a, r, b in self.relations))


@dataclass(frozen=True)
class Scene:
    """Things and the captions that are true of them. `claim` is what the first caption says."""

    things: tuple[Thing, ...]
    captions: tuple[str, ...]
    claim: Claim
    swapped: str | None

    @property
    def unseen_pair(self) -> bool:
        return any(HELD_OUT[t.colour] == t.shape for t in self.things)


# --- what is there -----------------------------------------------------------------------------------------------


def make_scene(rng: Random, *, unseen_pair: bool) -> Scene:
    """A random scene and `NUM_PHRASINGS` captions; with `unseen_pair` its first thing is a held-out pair."""
    kinds = _kinds(rng, unseen_pair)
    things = _laid_out(rng, kinds)
    claims = [_claim(rng, things) for _ in range(NUM_PHRASINGS)]
    seeds = [rng.random() for _ in claims]
    captions = tuple(_say(claim, Random(seed)) for claim, seed in zip(claims, seeds, strict=True))
    other = claims[0].swapped()
    swapped = None if fits(other, things) else _say(other, Random(seeds[0]))
    return Scene(things, captions, claims[0], swapped)


def _kinds(rng: Random, unseen_pair: bool) -> list[tuple[str, str, str]]:
    kinds = []
    for n in range(rng.choices((1, 2, 3), (0.15, 0.40, 0.45))[0]):
        colour, size = rng.choice(list(COLOURS)), rng.choice(list(SIZES))
        held_out = HELD_OUT[colour]
        shape = held_out if unseen_pair and n == 0 else rng.choice([s for s in SHAPES if s != held_out])
        kinds.append((colour, shape, size))
    return kinds


def _laid_out(rng: Random, kinds: Sequence[tuple[str, str, str]]) -> tuple[Thing, ...]:
    """Random centres: nothing overlaps or touches the edge, and every pair stands in a relation."""
    while True:
        things: list[Thing] = []
        for colour, shape, size in kinds:
            margin = SIZES[size][0] + 2
            x, y = rng.uniform(margin, SIZE_PX - margin), rng.uniform(margin, SIZE_PX - margin)
            if not all(_apart(t, x, y, SIZES[size][0]) for t in things):
                break
            things.append(Thing(colour, shape, size, round(x, 1), round(y, 1)))
        else:
            return tuple(things)


def _apart(thing: Thing, x: float, y: float, radius: float) -> bool:
    related = max(abs(thing.x - x), abs(thing.y - y)) > RELATION_PX + 0.2
    return related and math.hypot(thing.x - x, thing.y - y) > SIZES[thing.size][0] + radius + 2


def _holds(relation: str, a: Thing, b: Thing) -> bool:
    axis, sign, _ = RELATIONS[relation]
    return sign * ((a.x, a.y)[axis] - (b.x, b.y)[axis]) > RELATION_PX


def place(thing: Thing) -> str:
    """The cell of a 3 × 3 grid in which the centre lies."""
    third = SIZE_PX / 3
    vertical = ("top", "", "bottom")[int(thing.y / third)]
    horizontal = ("left", "", "right")[int(thing.x / third)]
    return " ".join(filter(None, (vertical, horizontal))) or "centre"


def fits(claim: Claim, things: tuple[Thing, ...]) -> bool:
    """Is the claim true of exactly these things (closed sense, under some assignment)?"""
    if len(claim.things) != len(things):
        return False
    return any(_true_of(claim, order) for order in permutations(things))


def _true_of(claim: Claim, things: tuple[Thing, ...]) -> bool:
    named = all(
        t.colour == colour and t.shape == shape and size in ("", t.size)
        for t, (colour, shape, size) in zip(things, claim.things, strict=True)
    )
    related = named and all(_holds(r, things[a], things[b]) for a, r, b in claim.relations)
    return related and (not claim.place or claim.place == place(things[0]))


# --- what is said ------------------------------------------------------------------------------------------------


def _claim(rng: Random, things: tuple[Thing, ...]) -> Claim:
    order = rng.sample(things, len(things))
    named = tuple((t.colour, t.shape, "" if rng.random() < 0.1 else t.size) for t in order)
    if len(order) == 1:
        return Claim(named, place=place(order[0]))
    others = [1] if len(order) == 2 or rng.random() < 0.5 else [1, 2]
    return Claim(named, tuple((0, _relation(rng, order[0], order[b]), b) for b in others))


def _relation(rng: Random, a: Thing, b: Thing) -> str:
    return rng.choice([r for r in RELATIONS if _holds(r, a, b)])


def _say(claim: Claim, rng: Random) -> str:
    """One phrasing. Equal `rng` and another relation give the same sentence but for that relation."""
    names = [_name(kind, rng) for kind in claim.things]
    first = names[0]
    opening = rng.choice(("", "", "there is ", "a picture of "))
    if claim.place:
        return f"{opening}{first} {rng.choice(('at', 'in'))} the {claim.place}"
    verb = "is " if opening == "" and rng.random() < 0.5 else ""
    words = [rng.choice(RELATIONS[r][2]) for _, r, _ in claim.relations]
    said = f"{opening}{first} {verb}{words[0]} {names[1]}"
    if len(words) == 2:
        return f"{said} and {words[1]} {names[2]}"
    return f"{said}, and {names[2]}" if len(names) == 3 else said


def _name(kind: tuple[str, str, str], rng: Random) -> str:
    colour, shape, size = kind
    words = [rng.choice(SIZES[size][1])] if size else []
    words += [rng.choice(COLOURS[colour][1]), rng.choice(SHAPES[shape])]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


# --- what is seen ------------------------------------------------------------------------------------------------


def draw(scene: Scene, rng: Random) -> Image.Image:
    """RGB picture of `SIZE_PX` × `SIZE_PX`, drawn larger and averaged down; colours, angles and ground are jittered."""
    ground = rng.randint(225, 250)
    canvas = Image.new("RGB", (SIZE_PX * SCALE, SIZE_PX * SCALE), _jittered(rng, (ground,) * 3, 5))
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        colour = _jittered(rng, COLOURS[thing.colour][0], 14)
        radius = SIZES[thing.size][0] * rng.uniform(0.95, 1.05) * SCALE
        x, y, angle = thing.x * SCALE, thing.y * SCALE, math.radians(rng.uniform(-15, 15))
        box = (x - radius, y - radius, x + radius, y + radius)
        if thing.shape == "circle":
            pen.ellipse(box, fill=colour)
        elif thing.shape == "ring":
            pen.ellipse(box, outline=colour, width=round(radius * 0.4))
        else:
            c, s = math.cos(angle) * radius, math.sin(angle) * radius
            pen.polygon([(x + c * u - s * v, y + s * u + c * v) for u, v in OUTLINES[thing.shape]], fill=colour)
    return canvas.reduce(SCALE)


def _jittered(rng: Random, colour: tuple[int, ...], by: int) -> tuple[int, ...]:
    return tuple(min(255, max(0, c + rng.randint(-by, by))) for c in colour)


def _star() -> list[tuple[float, float]]:
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    return [(math.cos(a) * r, math.sin(a) * r) for a, r in zip(angles, [1.0, 0.42] * 5, strict=True)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / 28 for k in range(28)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


def _moon() -> list[tuple[float, float]]:
    outer = [math.pi * (0.28 + 1.44 * k / 18) for k in range(19)]
    tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
    centre = 0.5
    inner_radius, half = math.hypot(tip_x - centre, tip_y), math.atan2(tip_y, tip_x - centre)
    inner = [-half - (2 * math.pi - 2 * half) * k / 14 for k in range(1, 14)]
    return [(math.cos(a) + 0.25, math.sin(a)) for a in outer] + [
        (centre + 0.25 + inner_radius * math.cos(a), inner_radius * math.sin(a)) for a in inner
    ]


def _cross(arm: float = 0.34) -> list[tuple[float, float]]:
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
    return [(a * x + b * y, c * x + d * y) for a, b, c, d in turns for x, y in quarter]


OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "moon": _moon(),
}

"""The appearance of an identity: everything that stays the same from camera to camera."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .palette import CLOTH, HAIR, LOWER_CLOTH, SHOE, SKIN
from .settings import SyntheticSettings
from .streams import Purpose, stream
from .texture import PLACED, WOVEN

_MAX_DRAWS = 200
_BODY_TRAITS = 6
_GAIT_TRAITS = 4


@dataclasses.dataclass(frozen=True)
class Appearance:
    """Looks of one identity. Colours are row numbers of the palettes.

    Attributes:
        lower: Lower garment: trousers, shorts, skirt, or trousers under a coat.
        upper_colour, lower_colour: Main colours (CLOTH, LOWER_CLOTH).
        accent_colour: Second colour of pattern, sleeves and details (CLOTH).
        hair_colour, bag_colour, shoe_colour, skin_colour: HAIR, CLOTH, SHOE, SKIN.
        woven: Whether the pattern covers half of the garment or only a place of it.
        pattern, pattern_scale: Name in texture.PATTERNS; 0 = coarse, 1 = fine.
        hair, hat, bag, sleeve, lower_detail, face: Kinds, see `_FORM_DRAWS`.
        left_handed: The side on which bags are carried.
        body: Build, shoulders, hips, head, leg length, body height; standard normal, clipped.
        gait: Lean, step, arm swing, elbow; uniform in [-1, 1].
        tints: Small shifts of the upper, accent, lower and bag colours, shape (4, 3).
    """

    lower: str
    upper_colour: int
    lower_colour: int
    accent_colour: int
    hair_colour: int
    bag_colour: int
    shoe_colour: int
    skin_colour: int
    woven: bool
    pattern: str
    pattern_scale: int
    hair: str
    hat: str
    bag: str
    sleeve: str
    lower_detail: str
    face: str
    left_handed: bool
    body: tuple[float, ...]
    gait: tuple[float, ...]
    tints: np.ndarray = dataclasses.field(repr=False, compare=False)


AttributeDraw = Callable[[np.random.Generator], Any]
"""Draws one attribute of `Appearance`."""


def _one_of(*options: str) -> Callable[[np.random.Generator], str]:
    return lambda random: options[random.integers(len(options))]


def _row_of(palette: np.ndarray) -> Callable[[np.random.Generator], int]:
    return lambda random: int(random.integers(len(palette)))


def _normal(count: int) -> Callable[[np.random.Generator], tuple[float, ...]]:
    return lambda random: tuple(np.clip(random.normal(0.0, 1.0, count), -1.8, 1.8).tolist())


# A repeated option is a likelier one.
_FAMILY_DRAWS: dict[str, AttributeDraw] = {
    "lower": _one_of("trousers", "trousers", "trousers", "shorts", "skirt", "coat"),
    "upper_colour": _row_of(CLOTH),
    "lower_colour": _row_of(LOWER_CLOTH),
}
_COLOUR_DRAWS: dict[str, AttributeDraw] = {
    "accent_colour": _row_of(CLOTH),
    "hair_colour": _row_of(HAIR),
    "bag_colour": _row_of(CLOTH),
    "shoe_colour": _row_of(SHOE),
    "skin_colour": _row_of(SKIN),
    # The kind of the pattern decides the mean colour of the garment, so it counts as a colour.
    "woven": lambda random: bool(random.random() < 0.85),
}
_FORM_DRAWS: dict[str, AttributeDraw] = {
    "pattern_scale": lambda random: int(random.integers(2)),
    "hair": _one_of("short", "short", "long", "tail", "bald"),
    "hat": _one_of("none", "none", "none", "none", "cap", "beanie"),
    "bag": _one_of("none", "none", "backpack", "shoulder", "hand"),
    "sleeve": _one_of("long", "long", "short", "contrast"),
    "lower_detail": _one_of("none", "none", "stripe", "cuff"),
    "face": _one_of("none", "none", "glasses", "beard"),
    "left_handed": lambda random: bool(random.random() < 0.5),
}


def _draw_pattern(random: np.random.Generator, woven: bool) -> str:
    names = list(WOVEN if woven else PLACED)
    return names[random.integers(len(names))]


def _draw_family(settings: SyntheticSettings, split: int, family: int) -> dict[str, Any]:
    """The looks around which the look-alikes of one family vary."""
    random = stream(settings.seed, Purpose.FAMILY, split, family)
    looks = {name: draw(random) for name, draw in {**_FAMILY_DRAWS, **_COLOUR_DRAWS, **_FORM_DRAWS}.items()}
    looks["pattern"] = _draw_pattern(random, looks["woven"])
    looks["body"] = _normal(_BODY_TRAITS)(random)
    return looks


def _draw_member(settings: SyntheticSettings, random: np.random.Generator, family: Mapping[str, Any]) -> Appearance:
    """One variation of the looks of a family."""
    looks = dict(family)
    for name, draw in _COLOUR_DRAWS.items():
        if random.random() < settings.colour_change:
            looks[name] = draw(random)
    for name, draw in _FORM_DRAWS.items():
        if random.random() < settings.form_change:
            looks[name] = draw(random)
    if looks["woven"] != family["woven"] or random.random() < settings.form_change:
        looks["pattern"] = _draw_pattern(random, looks["woven"])
    own_body = _normal(_BODY_TRAITS)(random)
    looks["body"] = tuple(0.4 * shared + 0.9 * own for shared, own in zip(family["body"], own_body, strict=True))
    looks["gait"] = tuple(random.uniform(-1.0, 1.0, _GAIT_TRAITS).tolist())
    return Appearance(**looks, tints=random.normal(0.0, 5.0, (4, 3)).astype(np.float32))


def visible_difference(one: Appearance, other: Appearance) -> float:
    """How clearly two look-alikes differ, in units of one clear attribute such as the pattern.

    Only what shows from most directions counts: no face, no gait, no colour of a bag that neither carries.
    """
    form = float(one.pattern != other.pattern) + float(one.bag != other.bag)
    small_forms = ("hair", "hat", "sleeve", "lower_detail")
    form += 0.7 * sum(getattr(one, name) != getattr(other, name) for name in small_forms)
    if one.pattern == other.pattern and one.pattern != "plain":
        form += 0.5 * (one.pattern_scale != other.pattern_scale)
    colour = 0.7 * (one.shoe_colour != other.shoe_colour)
    if one.pattern != "plain" and other.pattern != "plain":
        colour += float(one.accent_colour != other.accent_colour)
    if one.bag == other.bag != "none":
        colour += float(one.bag_colour != other.bag_colour)
    if "bald" not in (one.hair, other.hair):
        colour += 0.5 * (abs(one.hair_colour - other.hair_colour) > 1)
    return form + colour


def draw_family(settings: SyntheticSettings, split: int, family: int) -> list[Appearance]:
    """The look-alikes of one family, each at least `min_differences` away from those before it.

    Args:
        settings: The settings; `family_size` is the number of look-alikes.
        split: 0 = train, 1 = test; larger numbers for people who only pass by.
        family: Number of the family within its split, from 0.
    """
    shared = _draw_family(settings, split, family)
    members: list[Appearance] = []
    for place in range(settings.family_size):
        random = stream(settings.seed, Purpose.IDENTITY, split, family, place)
        # A bounded search: in a large family with little change, the last draw is accepted.
        for _ in range(_MAX_DRAWS):
            candidate = _draw_member(settings, random, shared)
            if all(visible_difference(candidate, member) >= settings.min_differences for member in members):
                break
        members.append(candidate)
    return members

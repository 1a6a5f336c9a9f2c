"""The renderer: settings, random streams, look-alikes, pictures."""

import dataclasses

import numpy as np
import pytest

from oskt_torchreid.datasets.contact_sheet import contact_sheet
from oskt_torchreid.datasets.market_layout import picture_files
from oskt_torchreid.datasets.synthetic import PRESETS, Renderer, SyntheticSettings, preset
from oskt_torchreid.datasets.synthetic.canvas import lay_over, new_layer, polygon
from oskt_torchreid.datasets.synthetic.identity import draw_family, visible_difference
from oskt_torchreid.datasets.synthetic.texture import PATTERNS, PLACED, WOVEN
from oskt_torchreid.errors import ConfigError

SMALL = {"height": 64, "width": 32, "train_identities": 8, "test_identities": 10, "cameras": 3, "images_per_camera": 3}


@pytest.mark.parametrize(("name", "people"), [("quick", (192, 64)), ("medium", (192, 64)), ("hard", (768, 128))])
def test_presets_are_so_many_people_at_six_cameras(name, people):
    settings = preset(name)
    assert (settings.train_identities, settings.test_identities) == people
    assert (settings.cameras, settings.images_per_camera) == (6, 2)
    assert (settings.height, settings.width) == (128, 64)
    assert len(list(picture_files(settings))) == 12 * sum(people)


@pytest.mark.parametrize(("easier", "harder"), [("quick", "medium"), ("medium", "hard")])
def test_no_preset_is_anywhere_easier_than_the_one_before(easier, harder):
    easy, hard = PRESETS[easier], PRESETS[harder]
    for name in ("camera_cast", "white_balance", "occlusion", "view", "resolution_loss", "noise", "jitter", "clutter"):
        assert getattr(hard, name) > getattr(easy, name)
    assert hard.min_differences < easy.min_differences


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'quik'; did you mean 'quick'"):
        preset("quik")


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown setting 'camera_casts'; did you mean 'camera_cast'"):
        preset("quick", camera_casts=1.0)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("seed", -1, "a whole number from 0 to"),
        ("height", 128.0, "a whole number from 32 to 1024"),
        ("cameras", 10, "a whole number from 2 to 9"),
        ("cameras", True, "a whole number"),
        ("occlusion", 1.5, "a number from 0.0 to 1.0"),
        ("view", "any", "a number from 0.0 to 1.0"),
        ("noise", float("nan"), "a number from 0.0 to 2.0"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named_with_what_is(name, value, allowed):
    with pytest.raises(ConfigError, match=f"synthped: {name} is .* must be {allowed}"):
        SyntheticSettings(**{name: value})


def test_a_gallery_too_small_for_the_ranking_is_refused():
    with pytest.raises(ConfigError, match="leave 47 gallery pictures per query.*needs 51 or more.*raise test_ident"):
        SyntheticSettings(test_identities=8)


def test_digest_changes_with_every_setting_and_not_with_the_spelling_of_a_number():
    quick = PRESETS["quick"]
    digests = {quick.digest()}
    for field in dataclasses.fields(quick):
        value = getattr(quick, field.name)
        digests.add(quick.replace(**{field.name: value + 1 if isinstance(value, int) else value / 2}).digest())
    assert len(digests) == 1 + len(dataclasses.fields(quick))
    assert quick.replace(jitter=1).digest() == quick.replace(jitter=1.0).digest()


def test_pictures_do_not_depend_on_the_order_of_drawing():
    settings = preset("medium", **SMALL)
    keys = [
        (split, identity, camera, walk, 3)
        for split in (0, 1)
        for identity in (0, 5)
        for camera in (0, 2)
        for walk in (0, 1)
    ]
    forward, backward = Renderer(settings), Renderer(settings)
    first = {key: forward.picture(*key) for key in keys}
    second = {key: backward.picture(*key) for key in reversed(keys)}
    for key in keys:
        assert np.array_equal(first[key], second[key]), key
        assert np.array_equal(first[key], forward.picture(*key)), key


def test_pictures_are_of_the_wanted_size_and_all_different():
    renderer = Renderer(preset("quick", **SMALL))
    keys = ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 3))
    pictures = [renderer.picture(0, *key) for key in keys]
    assert all(picture.shape == (64, 32, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_seed_and_split_change_the_people():
    one, other = Renderer(preset("quick", **SMALL)), Renderer(preset("quick", seed=1, **SMALL))
    assert not np.array_equal(one.picture(0, 0, 0, 0), other.picture(0, 0, 0, 0))
    assert not np.array_equal(one.picture(0, 0, 0, 0), one.picture(1, 0, 0, 0))


def test_more_people_leave_the_others_as_they_are():
    few, many = preset("quick", **SMALL), preset("quick", **{**SMALL, "train_identities": 40})
    assert np.array_equal(Renderer(few).picture(0, 7, 1, 1), Renderer(many).picture(0, 7, 1, 1))


def test_a_missing_camera_is_named():
    with pytest.raises(ConfigError, match="no camera 3; choose one from 0 to 2"):
        Renderer(preset("quick", **SMALL)).picture(0, 0, 3, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_look_alikes_share_the_main_colours_and_differ_visibly(name):
    settings = preset(name)
    for family in range(16):
        members = draw_family(settings, 1, family)
        assert len(members) == settings.family_size
        assert len({(member.lower, member.upper_colour, member.lower_colour) for member in members}) == 1
        for place, member in enumerate(members):
            for other in members[:place]:
                assert visible_difference(member, other) >= settings.min_differences


def test_without_colour_change_look_alikes_differ_in_form_alone():
    settings = preset("quick", colour_change=0.0)
    for family in range(8):
        members = draw_family(settings, 0, family)
        for name in ("accent_colour", "hair_colour", "bag_colour", "shoe_colour", "skin_colour", "woven"):
            assert len({getattr(member, name) for member in members}) == 1


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("scale", [0, 1])
def test_woven_patterns_cover_half_of_the_garment_and_placed_ones_less(name, scale):
    angle = np.linspace(-np.pi, np.pi, 720, endpoint=False)[None]
    height = np.linspace(0.0, 1.0, 400, endpoint=False)[:, None]
    mask = PATTERNS[name](angle, height, scale)
    assert mask.shape == (400, 720)
    assert 0.44 <= mask.mean() <= 0.58 if name in WOVEN else mask.mean() <= 0.35
    assert set(PATTERNS) == set(WOVEN) | set(PLACED)


def test_an_opaque_shape_replaces_the_picture_and_the_rest_stays():
    picture = np.full((8, 8, 3), 100, dtype=np.uint8)
    layer = new_layer(8, 8)
    polygon(layer, [(0, 0), (3, 0), (3, 7), (0, 7)], (10.0, 20.0, 30.0))
    result = lay_over(picture, layer)
    assert result[4, 1].tolist() == [10, 20, 30]
    assert result[4, 6].tolist() == [100, 100, 100]
    assert (picture == 100).all()


def test_contact_sheet_has_a_row_per_person():
    sheet = contact_sheet(preset("quick", **SMALL), rows=2)
    assert sheet.shape == (2 * 68, 3 * 2 * 36, 3)

"""Everybody can tell the channels apart and read what is written, in light and in dark."""

from __future__ import annotations

from itertools import combinations

import pytest

from underhood.draw.palette import (
    CHANNELS,
    COLOURS,
    PARTS,
    SHADES,
    TYPES,
    Theme,
    colour,
    contrast,
    marks,
    variables,
)

THEMES: tuple[Theme, Theme] = ("light", "dark")
GROUNDS = ("paper", "wash", "hover")


def test_contrast_is_that_of_the_definition() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_is_readable_on_everything_it_stands_on(channel: str, theme: Theme) -> None:
    for ground in GROUNDS:
        assert contrast(colour(channel, theme), colour(ground, theme)) >= 4.5, ground


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ink", ["ink", "muted"])
def test_text_is_readable_on_every_surface(ink: str, theme: Theme) -> None:
    for ground in (*GROUNDS, *SHADES):
        assert contrast(colour(ink, theme), colour(ground, theme)) >= 4.5, ground


@pytest.mark.parametrize("theme", THEMES)
def test_names_and_focus_stand_out(theme: Theme) -> None:
    assert contrast(colour("paper", theme), colour("ink", theme)) >= 7
    for ground in GROUNDS:
        assert contrast(colour("focus", theme), colour(ground, theme)) >= 3
    assert contrast(colour("edge", theme), colour("paper", theme)) >= 3


def test_no_two_channels_share_line_and_head() -> None:
    looks = [(channel.dash, channel.head) for channel in CHANNELS.values()]
    assert len(set(looks)) == len(looks)


# Machado, Oliveira and Fernandes (2009): what remains of linear RGB without one kind of cone.
BLINDNESS = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}  # fmt: skip


def seen(hexadecimal: str, kind: str) -> tuple[float, ...]:
    """Return the colour as somebody sees it, in CIE L*a*b*."""
    rgb = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    if kind in BLINDNESS:
        linear = [
            min(max(sum(w * c for w, c in zip(row, linear, strict=True)), 0), 1)
            for row in BLINDNESS[kind]
        ]
    r, g, b = linear
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("eyes", ["all cones", "protanopia", "deuteranopia"])
def test_the_channels_that_meet_most_differ_for_all_eyes(eyes: str, theme: Theme) -> None:
    for one, other in combinations(("shell", "iopub", "heartbeat"), 2):
        a, b = seen(colour(one, theme), eyes), seen(colour(other, theme), eyes)
        distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        assert distance > 12, (one, other)  # 2.3 is just noticeable


def test_every_role_names_a_colour_that_exists() -> None:
    known = {"", "none", "tint", *COLOURS, *CHANNELS}
    for part in PARTS.values():
        assert {part.stroke, part.fill} <= known
    for style in TYPES.values():
        assert style.colour in known


def test_a_page_gets_variables_and_a_file_gets_colours() -> None:
    assert "light-dark(#fdfcf9,#16191f)" in variables()
    assert "var(--uh-shell)" in marks(".underhood ")
    assert "var(" not in marks("", "dark")
    assert all(rule.startswith(".underhood ") for rule in marks(".underhood ").splitlines())

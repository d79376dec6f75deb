"""Pixels: coverage against fine supersampling, colours, backgrounds, the moving camera."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from onereel.world import (
    COLOURS,
    NUM_BACKGROUNDS,
    PALETTE,
    ObjectSpec,
    SceneSpec,
    coverage,
    outline,
    render,
    sample_spec,
    screen_positions,
    simulate,
    texture,
)

SHAPES = ("disc", "square", "triangle", "diamond")


def supersampled(
    shape: str, centre: tuple[float, float], radius: float, angle: float, size: int, fine: int = 8
) -> np.ndarray:
    """Coverage by counting points, independent of the renderer's formulas."""
    ticks = (np.arange(size * fine) + 0.5) / fine
    dx, dy = np.meshgrid(ticks - centre[0], ticks - centre[1])
    c, s = np.cos(angle), np.sin(angle)
    px, py = (c * dx + s * dy) / radius, (c * dy - s * dx) / radius
    if shape == "disc":
        inside = px**2 + py**2 <= 1
    else:
        corners = np.array(outline(shape))
        following = np.roll(corners, -1, axis=0)
        sides = [
            (bx - ax) * (py - ay) - (by - ay) * (px - ax)
            for (ax, ay), (bx, by) in zip(corners, following, strict=True)
        ]
        stack = np.stack(sides)
        inside = np.all(stack >= 0, 0) | np.all(stack <= 0, 0)
    return inside.reshape(size, fine, size, fine).mean((1, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_agrees_with_supersampling(shape: str) -> None:
    rng, off = np.random.default_rng(0), []
    for _ in range(12):
        centre = (float(rng.uniform(15, 17)), float(rng.uniform(15, 17)))
        radius, angle = float(rng.uniform(4.4, 8.4)), float(rng.uniform(0, np.pi))
        got = coverage(shape, centre=centre, radius=radius, angle=angle, size=(32, 32))
        want = supersampled(shape, centre, radius, angle, 32)
        error = np.abs(got - want)
        assert error.max() < 0.15
        assert error[error > 0].mean() < 0.035
        assert got.sum() == pytest.approx(np.pi * radius**2, rel=0.012)
        rows, cols = np.mgrid[:32, :32] + 0.5
        x, y = (got * cols).sum() / got.sum(), (got * rows).sum() / got.sum()
        off.append(np.hypot(x - centre[0], y - centre[1]))
    assert np.mean(off) < 0.02
    assert max(off) < 0.08


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_outlines_have_area_pi_and_their_centroid_at_the_origin(shape: str) -> None:
    corners = np.array(outline(shape))
    ahead = np.roll(corners, -1, axis=0)
    cross = corners[:, 0] * ahead[:, 1] - ahead[:, 0] * corners[:, 1]
    area = cross.sum() / 2
    assert abs(area) == pytest.approx(np.pi)
    centroid = ((corners + ahead) * cross[:, None]).sum(0) / (6 * area)
    np.testing.assert_allclose(centroid, 0, atol=1e-12)
    sides = np.linalg.norm(ahead - corners, axis=1)
    np.testing.assert_allclose(sides, sides[0])
    if shape == "diamond":
        assert np.ptp(corners[:, 1]) / np.ptp(corners[:, 0]) == pytest.approx(1.7)


@pytest.mark.parametrize("colour", PALETTE)
@pytest.mark.parametrize("shape", SHAPES)
def test_objects_show_their_palette_colour(colour: str, shape: str) -> None:
    spec = SceneSpec(
        objects=(ObjectSpec(shape=shape, colour=colour, size="large"),), motion="static"
    )
    episode = simulate(spec, 0, num_frames=1)
    x, y, r, angle = episode.state[0, 0, [0, 1, 4, 5]]
    inside = coverage(shape, centre=(x, y), radius=r, angle=angle, size=(64, 64)) > 0.99
    pixels = render(episode)[0][inside].astype(float)
    assert np.linalg.norm(pixels - PALETTE[colour], axis=-1).max() < 20
    assert np.linalg.norm(pixels.mean(0) - PALETTE[colour]) < 4


def test_shading_and_shadow_leave_the_measured_place_and_size_alone() -> None:
    rng, off, size = np.random.default_rng(1), [], []
    for seed in range(60):
        spec = sample_spec(rng, motions=("static",), num_objects=1)
        episode = simulate(spec, seed, num_frames=1)
        x, y, r, colour = episode.state[0, 0, [0, 1, 4, 7]].astype(float)
        hidden = dataclasses.replace(episode, opacity=np.zeros_like(episode.opacity))
        image, back = (render(e)[0].astype(float) for e in (episode, hidden))
        ahead = np.array(PALETTE[COLOURS[int(colour)]]) - back
        alpha = np.clip(((image - back) * ahead).sum(-1) / (ahead**2).sum(-1), 0, 1)
        alpha[alpha < 0.06] = 0
        rows, cols = np.mgrid[:64, :64] + 0.5
        total = alpha.sum()
        off.append(np.hypot((alpha * cols).sum() / total - x, (alpha * rows).sum() / total - y))
        size.append(np.sqrt(total / np.pi) / r - 1)
    assert np.mean(off) < 0.03
    assert max(off) < 0.15
    assert np.abs(size).max() < 0.04


@pytest.mark.parametrize("background", range(NUM_BACKGROUNDS))
@pytest.mark.parametrize("floor_y", [None, 55.7])
def test_backgrounds_are_grey_enough(background: int, floor_y: float | None) -> None:
    image = texture(background, (64, 96), unit=64, floor_y=floor_y)
    assert np.ptp(image, axis=-1).max() <= 24
    luminance = image @ np.array([0.299, 0.587, 0.114])
    assert 60 <= luminance.min()
    assert luminance.max() <= 190
    # periodic: the step over the right edge is no larger than the steps inside
    inner = np.abs(np.diff(image, axis=1)).max()
    assert np.abs(image[:, 0] - image[:, -1]).max() <= inner + 1e-3


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (128, 128), (64, 96), (96, 64)])
def test_every_size_renders_and_slices(size: tuple[int, int]) -> None:
    spec = SceneSpec(
        objects=(ObjectSpec(shape="triangle", colour="pink", size="large"),),
        motion="linear",
        direction="down_left",
        speed="fast",
    )
    episode = simulate(spec, 1, num_frames=30, height=size[0], width=size[1])
    video = render(episode)
    assert video.shape == (30, *size, 3)
    assert video.dtype == np.uint8
    np.testing.assert_array_equal(render(episode, start=7, stop=12), video[7:12])


@pytest.mark.parametrize(("motion", "camera"), [("pan", "pan_right"), ("zoom", "zoom_in")])
def test_background_moves_with_the_camera(motion: str, camera: str) -> None:
    # 36 frames of pan are 24 whole pixels, so the shifted picture must match exactly
    spec = SceneSpec(
        objects=(ObjectSpec(shape="disc", colour="red", size="small"),),
        motion=motion,
        direction="right" if motion == "pan" else None,
        camera=camera,
        background=7,
    )
    episode = simulate(spec, 2, num_frames=37)
    video = render(episode).astype(int)
    if motion == "pan":
        a, b = video[0][:, 24:], video[36][:, :40]
        assert np.mean(np.abs(a - b).max(-1) <= 1) > 0.97
    else:
        zoom = float(episode.camera[36, 2])
        assert zoom == pytest.approx(np.exp(0.12 * 1.5), rel=1e-3)
        # undo the zoom: each pixel of the first frame, looked up in the last
        places = (np.arange(8, 56) + 0.5 - 32) * zoom + 31.5
        keep = (places >= 0) & (places <= 63)
        near = np.rint(places[keep]).astype(int)
        first = video[0][8:56, 8:56][np.ix_(keep, keep)]
        aligned = np.abs(first - video[36][np.ix_(near, near)]).mean()
        assert aligned < 0.5 * np.abs(first - video[36][8:56, 8:56][np.ix_(keep, keep)]).mean()
    x, y, r = screen_positions(episode)
    for frame in (0, 36):
        pixel = video[frame, int(y[frame, 0]), int(x[frame, 0])]
        assert np.linalg.norm(pixel - np.array(PALETTE["red"])) < 25
    assert (r[36] > r[0]) == (motion == "zoom")


def test_the_slab_hides_and_the_mover_is_in_front_of_the_rest() -> None:
    spec = SceneSpec(
        objects=(ObjectSpec(shape="disc", colour="blue"),),
        motion="occlude",
        direction="right",
        speed="medium",
    )
    episode = simulate(spec, 0, num_frames=60)
    hidden = int(np.argmin(episode.state[:, 0, 8]))
    blue = np.array(PALETTE["blue"])
    shown = [(np.linalg.norm(f.astype(float) - blue, axis=-1) < 25).sum() for f in render(episode)]
    assert shown[hidden] == 0
    assert shown[0] > 80

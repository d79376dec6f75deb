"""The laws: gravity, restitution, momentum, walls, friction, the camera."""

from __future__ import annotations

import numpy as np
import pytest

from onereel.world import (
    GRAVITY,
    SIZES,
    SPEEDS,
    Episode,
    ObjectSpec,
    SceneSpec,
    reach,
    sample_spec,
    simulate,
)
from onereel.world.physics import Body, step


def scene(motion: str, shape: str = "disc", **rest: object) -> SceneSpec:
    """One red object of medium size."""
    return SceneSpec(objects=(ObjectSpec(shape=shape, colour="red"),), motion=motion, **rest)  # type: ignore[arg-type]


def frames_of(episode: Episode, kind: str) -> list[int]:
    """Frames in which something of a kind happens."""
    return [frame for frame, name, _, _ in episode.events if name == kind]


@pytest.mark.parametrize("shape", ["disc", "square", "triangle", "diamond"])
def test_a_fall_has_the_right_acceleration_and_ends_on_the_floor(shape: str) -> None:
    episode = simulate(scene("gravity", shape, floor=True), 5, num_frames=96)
    landed = frames_of(episode, "land")[0]
    y = episode.state[:landed, 0, 1].astype(np.float64)
    half_g = np.polyfit(np.arange(landed) / 24, y, 2)[0]
    assert 2 * half_g == pytest.approx(GRAVITY * 64, rel=1e-3)
    low = episode.state[landed + 1, 0, 1] + SIZES["medium"] * 64 * reach(shape, 0.0)[3]
    assert low == pytest.approx(episode.floor_y, abs=1e-4)
    assert np.all(episode.state[landed + 1 :, 0, 3] == 0)


@pytest.mark.parametrize("restitution", [0.6, 0.8, 1.0])
def test_each_rebound_reaches_the_squared_share_of_the_height(restitution: float) -> None:
    body = Body(x=32, y=10, radius=5, low=(5, 5), high=(59, 50), ay=57.6, restitution=restitution)
    # the ballistic height that a state can still reach is exact at any time between contacts
    heights = [50 - body.y]
    for _ in range(192 * 6):
        if step(body, 1 / 192) == "bounce":
            heights.append(50 - body.y + body.vy**2 / (2 * 57.6))
    ratios = np.array(heights[1:4]) / np.array(heights[:3])
    np.testing.assert_allclose(ratios, restitution**2, rtol=1e-6)


def test_an_elastic_ball_returns_to_its_height_for_a_minute() -> None:
    body = Body(x=32, y=10, radius=5, low=(5, 5), high=(59, 50), ay=57.6)
    ys = []
    for _ in range(192 * 60):
        step(body, 1 / 192)
        ys.append(body.y)
    assert min(ys[-192 * 3 :]) == pytest.approx(10, abs=1e-3)


def test_collisions_keep_momentum_and_energy() -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        spec = sample_spec(rng, motions=("collide",))
        episode = simulate(spec, seed, num_frames=48)
        hit = frames_of(episode, "collide")[0]
        assert 8 <= hit < 24
        before, after = episode.state[hit, :, 2:4], episode.state[hit + 1, :, 2:4]
        walls = [f for f in frames_of(episode, "wall") if f <= hit]
        assert not walls
        np.testing.assert_allclose(before.sum(0), after.sum(0), atol=1e-3)
        assert (before**2).sum() == pytest.approx((after**2).sum(), rel=1e-4)
        assert np.linalg.norm(after[1]) > 0.3 * np.linalg.norm(before[0])
        gap = np.linalg.norm(episode.state[:, 0, :2] - episode.state[:, 1, :2], axis=-1)
        assert gap.min() >= episode.state[0, :, 4].sum() - 1e-3


@pytest.mark.parametrize(("name", "share"), SPEEDS.items())
def test_linear_motion_has_its_speed_and_stays_in_view(name: str, share: float) -> None:
    for seed in range(6):
        spec = scene("linear", "diamond", direction="right", speed=name)
        episode = simulate(spec, seed, num_frames=240, height=48, width=96)
        x, vx = episode.state[:, 0, 0], episode.state[:, 0, 2]
        assert vx[0] == pytest.approx(share * 96)
        assert np.all(vx[:12] > 0)
        assert np.all(np.abs(vx) == pytest.approx(share * 96))
        assert x.min() > 0
        assert x.max() < 96


def test_a_slide_slows_evenly_and_stops() -> None:
    spec = scene("slide_stop", direction="left", speed="fast", floor=True)
    episode = simulate(spec, 3, num_frames=96)
    stop = frames_of(episode, "stop")[0]
    vx = episode.state[:stop, 0, 2]
    np.testing.assert_allclose(np.diff(vx), np.diff(vx)[0], atol=1e-3)
    assert vx[0] == pytest.approx(-0.7 * 64)
    assert np.all(episode.state[stop + 1 :, 0, 2] == 0)


def test_an_occluded_object_is_hidden_and_returns() -> None:
    spec = scene("occlude", direction="right", speed="medium")
    visible = simulate(spec, 1, num_frames=96).state[:, 0, 8]
    assert visible[0] > 0.95
    assert visible.min() < 0.02
    assert visible[np.argmin(visible) :].max() > 0.95


@pytest.mark.parametrize(("motion", "signs"), [("appear", (0, 1)), ("vanish", (1, 0))])
def test_appearing_and_vanishing_happen_within_the_first_second(
    motion: str, signs: tuple[int, int]
) -> None:
    for seed in range(8):
        episode = simulate(scene(motion), seed, num_frames=24)
        assert tuple(episode.state[[0, -1], 0, 8].round()) == signs
        assert [e[1] for e in episode.events] == [motion]


def test_camera_moves_as_told() -> None:
    pan = simulate(scene("pan", direction="left", camera="pan_left"), 0, num_frames=48)
    np.testing.assert_allclose(np.diff(pan.camera[:, 0]), -0.25 * 64 / 24, rtol=1e-4)
    zoom = simulate(scene("zoom", camera="zoom_out"), 0, num_frames=48)
    assert zoom.camera[0, 2] == 1
    assert np.all(np.diff(zoom.camera[:, 2]) < 0)
    still = simulate(scene("static"), 0, num_frames=48)
    assert np.ptp(still.state, axis=0).max() == 0


def test_resting_objects_keep_their_relation_and_clear_the_path() -> None:
    rng = np.random.default_rng(4)
    clear = 0
    for seed in range(60):
        spec = sample_spec(rng, motions=("linear", "gravity", "static"), num_objects=2)
        state = simulate(spec, seed, num_frames=72).state
        (x0, y0), (x1, y1) = state[0, :, :2]
        sign = {
            "left_of": x1 - x0,
            "right_of": x0 - x1,
            "above": y1 - y0,
            "below": y0 - y1,
        }[spec.relation or ""]
        assert sign > 0
        gap = np.linalg.norm(state[:, 0, :2] - state[:, 1, :2], axis=-1).min()
        clear += gap > state[0, :, 4].sum()
    assert clear >= 57


def test_long_and_short_episodes_start_alike() -> None:
    rng = np.random.default_rng(5)
    for seed in range(25):
        spec = sample_spec(rng)
        long, short = (simulate(spec, seed, num_frames=n) for n in (150, 24))
        np.testing.assert_array_equal(long.state[:24], short.state)
        np.testing.assert_array_equal(long.camera[:24], short.camera)


def test_episodes_survive_saving(tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec = sample_spec(np.random.default_rng(6), motions=("occlude",))
    episode = simulate(spec, 0, num_frames=24)
    episode.save(tmp_path / "e.npz")
    again = Episode.load(tmp_path / "e.npz")
    assert again.events == episode.events
    assert again.slab == episode.slab
    np.testing.assert_array_equal(again.state, episode.state)
    np.testing.assert_array_equal(again.rgb, episode.rgb)


def test_a_collision_that_starts_at_a_wall_throws_nothing_across() -> None:
    spec = sample_spec(np.random.default_rng((113, 3)), motions=["collide"])
    state = simulate(spec, 113, num_frames=24).state
    fastest = max(SPEEDS.values()) * 64 / 24
    assert np.abs(np.diff(state[:, :2, 0], axis=0)).max() < 1.1 * fastest

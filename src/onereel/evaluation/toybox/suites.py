"""What is evaluated on Toybox: suites of cases, each case one video that a model shall make.

A suite is fixed: scenes come from seeds that begin with the word "evaluation", where training's
begin with a number, and every second prompt is a combination held out from training. Only the
noise depends on the run's seed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onereel.core.config import nearest_name
from onereel.core.errors import ConfigError
from onereel.core.seeds import derive_seed
from onereel.world import (
    CHUNK_FRAMES,
    Episode,
    SceneSpec,
    caption,
    change_caption,
    fixed_prompts,
    sample_clip,
    sample_spec,
    simulate_chunks,
)

_SETTING = ("linear", "gravity", "bounce", "collide", "slide_stop", "occlude", "pan", "zoom")
_LASTING = ("linear", "bounce", "gravity", "static")  # nothing leaves the picture for good


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """One list of prompts and what is asked of the model.

    Args:
        mode: `t2v`, `i2v` (the true first frame is given) or `v2v` (true chunks are given).
        num_prompts: prompts.
        num_samples: videos per prompt, with different noise.
        num_frames: frames to make per video (with `i2v` the given one counts).
        motions: of the scenes that are drawn; none means all.
        given_chunks: chunks of 24 true frames in front; every prompt is made with each number.
        changes: the prompt changes on the way.
        fixed: take the sixteen fixed prompts instead of drawing scenes.
    """

    mode: str
    num_prompts: int
    num_samples: int
    num_frames: int
    motions: tuple[str, ...] = ()
    given_chunks: tuple[int, ...] = (0,)
    changes: bool = False
    fixed: bool = False


SUITES = {
    "quick": Suite(mode="t2v", num_prompts=16, num_samples=1, num_frames=48, fixed=True),
    "standard": Suite(mode="t2v", num_prompts=256, num_samples=5, num_frames=96),
    "long": Suite(mode="t2v", num_prompts=16, num_samples=1, num_frames=1440, motions=_LASTING),
    "v2v": Suite(
        mode="v2v", num_prompts=32, num_samples=5, num_frames=120, motions=_SETTING,
        given_chunks=(1, 3),
    ),
    "i2v": Suite(mode="i2v", num_prompts=64, num_samples=2, num_frames=96),
    "timeline": Suite(mode="t2v", num_prompts=64, num_samples=2, num_frames=96, changes=True),
}  # fmt: skip

# Physics-IQ on Toybox (`physics_run.py`), and what is given to the model.
PHYSICS_SUITES = {"physics-v2v": "v2v", "physics-i2v": "i2v"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One video to be made.

    Args:
        name: unique within the suite; names its files.
        prompt: number of the prompt.
        sample: number of the video among those of the prompt.
        mode: `t2v`, `i2v` or `v2v`.
        texts: prompt of every chunk of 24 frames to be made.
        specs: the scene of every chunk, given ones first.
        held_out: the combination is never seen in training.
        num_frames: frames to make.
        given_frames: true frames in front of them (v2v), or 1 (i2v, which counts as made).
        world_seed: of the true scene.
        noise_seed: of the model's noise.
    """

    name: str
    prompt: int
    sample: int
    mode: str
    texts: tuple[str, ...]
    specs: tuple[SceneSpec, ...]
    held_out: bool
    num_frames: int
    given_frames: int
    world_seed: int
    noise_seed: int

    @property
    def prefix_frames(self) -> int:
        """Count the true frames that come before the made ones.

        Returns:
            0 but for video to video.
        """
        return self.given_frames if self.mode == "v2v" else 0

    @property
    def made_specs(self) -> tuple[SceneSpec, ...]:
        """Give the scenes of the chunks that are made.

        Returns:
            One per text.
        """
        return self.specs[self.prefix_frames // CHUNK_FRAMES :]


def find_suite(name: str) -> Suite:
    """Look a suite up.

    Args:
        name: such as `quick`.

    Returns:
        The suite.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SUITES:
        known = [*SUITES, *PHYSICS_SUITES]
        near = nearest_name(name, known)
        hint = f"did you mean '{near}'?" if near else None
        raise ConfigError("suite", expected=f"one of {', '.join(known)}", got=name, hint=hint)
    return SUITES[name]


def make_cases(
    name: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    samples: int | None = None,
    num_frames: int | None = None,
) -> tuple[Case, ...]:
    """List the videos of a suite.

    Args:
        name: of the suite.
        seed: of the noise; scenes and prompts do not depend on it.
        limit: only the first so many prompts.
        samples: videos per prompt instead of the suite's number.
        num_frames: frames per video instead of the suite's number.

    Returns:
        The cases, all samples of a prompt in a row.

    Raises:
        ConfigError: no such suite, or a number is not positive.
    """
    suite = find_suite(name)
    for what, value in (("limit", limit), ("samples", samples), ("num_frames", num_frames)):
        if value is not None and value < 1:
            raise ConfigError(what, expected="at least 1", got=value)
    if suite.changes and num_frames is not None and num_frames <= CHUNK_FRAMES:
        raise ConfigError("num_frames", expected=f"more than {CHUNK_FRAMES} in suite {name}",
                          got=num_frames, hint="a prompt changes between chunks")  # fmt: skip
    suite = dataclasses.replace(
        suite,
        num_prompts=min(suite.num_prompts, limit or suite.num_prompts),
        num_samples=samples or suite.num_samples,
        num_frames=num_frames or suite.num_frames,
    )
    return tuple(_cases(name, suite, seed))


def _cases(name: str, suite: Suite, seed: int) -> Iterator[Case]:
    for prompt in range(suite.num_prompts):
        for given, sample in itertools.product(suite.given_chunks, range(suite.num_samples)):
            specs, texts, world_seed = _scene(name, suite, prompt=prompt, given=given)
            if suite.mode == "t2v":  # the model sees nothing of the true scene, so each has its own
                world_seed = derive_seed(world_seed, sample)
            several = f"-given{given}" if len(suite.given_chunks) > 1 else ""
            label = f"{prompt:03d}{several}-{sample}"
            yield Case(
                name=label,
                prompt=prompt,
                sample=sample,
                mode=suite.mode,
                texts=texts,
                specs=specs,
                held_out=specs[0].is_held_out(),
                num_frames=suite.num_frames,
                given_frames=1 if suite.mode == "i2v" else given * CHUNK_FRAMES,
                world_seed=world_seed,
                # 31 bits, so that it can be typed after `onereel generate --seed`
                noise_seed=derive_seed(seed, "evaluation", name, label) % 2**31,
            )


def _scene(
    name: str, suite: Suite, *, prompt: int, given: int
) -> tuple[tuple[SceneSpec, ...], tuple[str, ...], int]:
    """Draw a scene: its spec per chunk, its text per made chunk, and the world's seed."""
    chunks = -(-suite.num_frames // CHUNK_FRAMES)
    if suite.changes:
        return _changing(name, suite, prompt)
    seed = derive_seed("evaluation", name, prompt)
    if suite.fixed:
        text, spec = fixed_prompts()[prompt]
    else:
        rng = np.random.default_rng(seed)
        spec = sample_spec(rng, held_out=prompt % 2 == 1, motions=suite.motions or None)
        text = caption(spec)
    return (spec,) * (given + chunks), (text,) * chunks, seed


def _changing(
    name: str, suite: Suite, prompt: int
) -> tuple[tuple[SceneSpec, ...], tuple[str, ...], int]:
    """Draw a scene whose prompt changes; not every draw of the world does."""
    for attempt in itertools.count():
        seed = derive_seed("evaluation", name, prompt, attempt)
        specs = sample_clip(
            seed,
            num_frames=suite.num_frames,
            height=32,  # the specs are the same on every canvas, and a small one is quick
            width=32,
            held_out=prompt % 2 == 1,
            timeline_share=1.0,
        ).specs
        if specs[0] != specs[-1]:
            break
    texts = [caption(specs[0])]
    for before, after in itertools.pairwise(specs):
        texts.append(caption(after) if before == after else change_caption(before, after))
    return specs, tuple(texts), seed


def true_episode(case: Case, *, height: int, width: int, fps: int = 24) -> Episode:
    """Simulate the true scene of a case.

    Args:
        case: the case.
        height: of the canvas in pixels.
        width: of the canvas in pixels.
        fps: frames per second.

    Returns:
        The episode with the given frames in front; longer where those are no whole chunks.
    """
    frames = case.prefix_frames + case.num_frames
    return simulate_chunks(
        case.specs, case.world_seed, num_frames=frames, height=height, width=width, fps=fps
    )

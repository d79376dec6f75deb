"""The three pipelines and the arguments of their calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from onereel import Magi1ImageToVideoPipeline, Magi1Pipeline, Magi1VideoToVideoPipeline
from onereel.core.errors import ConfigError, ShapeError
from onereel.media import resize_frames

PROMPT = "a red disc bounces"
STEPS_OF_ONE_CHUNK = 4  # one per window position


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Any:
    return quiet(Magi1Pipeline.from_pretrained(tiny_checkpoint))


@pytest.fixture(scope="module")
def i2v(pipe: Any) -> Any:
    return quiet(Magi1ImageToVideoPipeline(**parts_of(pipe)))


@pytest.fixture(scope="module")
def v2v(pipe: Any) -> Any:
    return quiet(Magi1VideoToVideoPipeline(**parts_of(pipe)))


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def parts_of(pipeline: Any) -> dict[str, Any]:
    return {**pipeline.components, "sampling": dict(pipeline.sampling)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def clip(frames: int) -> list[PIL.Image.Image]:
    return [picture(i) for i in range(frames)]


def test_every_output_type_shows_the_same_video(pipe: Any) -> None:
    made = {
        kind: pipe(PROMPT, generator=seeded(), output_type=kind).frames
        for kind in ("np", "pt", "pil", "latent")
    }
    assert made["np"].shape == (1, 24, 32, 32, 3)
    assert made["np"].min() >= 0 and made["np"].max() <= 1 and made["np"].std() > 0.01
    assert made["pt"].shape == (1, 24, 3, 32, 32)
    assert np.array_equal(made["pt"].permute(0, 1, 3, 4, 2).numpy(), made["np"])
    assert len(made["pil"][0]) == 24 and made["pil"][0][0].size == (32, 32)
    assert np.abs(np.asarray(made["pil"][0][3]) / 255 - made["np"][0, 3]).max() < 0.51 / 255
    assert made["latent"].shape == (1, 4, 6, 4, 4)
    decoded = pipe.vae.decode_chunk(made["latent"]).clamp(-1, 1) / 2 + 0.5
    assert torch.equal(decoded.transpose(1, 2), made["pt"])


def test_a_tuple_instead_of_an_object(pipe: Any) -> None:
    (frames,) = pipe(PROMPT, generator=seeded(), return_dict=False)
    assert np.array_equal(frames, pipe(PROMPT, generator=seeded()).frames)


def test_an_unknown_output_type_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="output_type: expected one of np, pt, pil, latent"):
        pipe(PROMPT, output_type="tensor")


def test_batches_and_videos_per_prompt(pipe: Any) -> None:
    frames = pipe(
        [PROMPT, "a blue ring"], num_videos_per_prompt=2, generator=seeded(), output_type="latent"
    ).frames
    assert frames.shape[0] == 4
    assert len({row.numpy().tobytes() for row in frames}) == 4
    alone = pipe(PROMPT, generator=seeded(), output_type="latent").frames
    assert torch.equal(frames[0], alone[0])


def test_a_generator_decides_everything(pipe: Any) -> None:
    def run(generator: Any) -> torch.Tensor:
        return pipe(PROMPT, generator=generator, output_type="latent").frames

    assert torch.equal(run(seeded(1)), run(seeded(1)))
    assert not torch.equal(run(seeded(1)), run(seeded(2)))
    pair = pipe([PROMPT] * 2, generator=[seeded(1), seeded(2)], output_type="latent").frames
    assert torch.equal(pair[0], run(seeded(1))[0]) and torch.equal(pair[1], run(seeded(2))[0])
    with pytest.raises(ConfigError, match="generator: expected a list of 1"):
        run([seeded(), seeded()])


def test_a_longer_video_starts_like_a_shorter_one(pipe: Any) -> None:
    short = pipe(PROMPT, num_frames=24, generator=seeded()).frames
    long = pipe(PROMPT, num_frames=72, generator=seeded()).frames
    assert long.shape[1] == 72
    assert np.allclose(long[:, :24], short, atol=1e-5)


def test_latents_take_the_noise_s_place(pipe: Any) -> None:
    noise = torch.randn(1, 4, 6, 4, 4, generator=seeded(3))
    first = pipe(PROMPT, latents=noise, generator=seeded(1), output_type="latent").frames
    second = pipe(PROMPT, latents=noise, generator=seeded(2), output_type="latent").frames
    assert torch.equal(first, second)
    other = pipe(PROMPT, latents=-noise, generator=seeded(1), output_type="latent").frames
    assert not torch.equal(first, other)
    with pytest.raises(ShapeError, match=r"latents: expected \(1, 4, 6, 4, 4\)"):
        pipe(PROMPT, latents=noise[:, :, :5])
    with pytest.raises(ConfigError, match="latents: expected 2 videos, got 1"):
        pipe([PROMPT] * 2, latents=noise)


def test_the_callback_sees_every_step(pipe: Any) -> None:
    seen: list[tuple[int, float, set[str]]] = []

    def callback(pipeline: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipeline is pipe
        assert tensors["latents"].shape[2] == 6
        seen.append((step, t, set(tensors)))
        return {}

    names = ["latents", "prompt_embeds"]
    pipe(PROMPT, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert [step for step, _, _ in seen] == list(range(STEPS_OF_ONE_CHUNK))
    assert [t for _, t, _ in seen] == sorted(t for _, t, _ in seen)
    assert seen[-1][1] == pytest.approx(1)
    assert seen[0][2] == set(names)
    assert pipe.num_timesteps == STEPS_OF_ONE_CHUNK
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        pipe(PROMPT, callback_on_step_end_tensor_inputs=["noise"])


def test_a_callback_may_replace_the_latents(pipe: Any) -> None:
    def last_word(pipeline: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.full_like(tensors["latents"], 0.25)} if t > 0.99 else {}

    latent = pipe(PROMPT, callback_on_step_end=last_word, output_type="latent").frames
    assert torch.equal(latent, torch.full_like(latent, 0.25))


@pytest.mark.parametrize(("stop_after", "frames"), [(1, 0), (4, 24), (5, 48)])
def test_an_interrupt_returns_what_is_finished(pipe: Any, stop_after: int, frames: int) -> None:
    """Chunk k of three is finished by step 4 + k, counted from one."""

    def stop(pipeline: Any, step: int, t: float, tensors: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = step + 1 >= stop_after
        return {}

    made = pipe([PROMPT] * 2, num_frames=72, callback_on_step_end=stop).frames
    assert made.shape == (1, frames, 32, 32, 3)  # the second video is not begun
    assert pipe.interrupt
    pipe(PROMPT)
    assert not pipe.interrupt


def test_prompt_embeds_are_the_prompt(pipe: Any) -> None:
    embeds, negative, mask, negative_mask = pipe.encode_prompt([PROMPT, "a ring"])
    assert embeds.shape == (2, int(mask.sum(1).max()), 128)
    assert negative.shape[:2] == negative_mask.shape and negative_mask.all()
    by_text = pipe([PROMPT, "a ring"], generator=seeded(), output_type="latent").frames
    masked = pipe(
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        generator=seeded(),
        output_type="latent",
    ).frames
    bare = pipe(prompt_embeds=embeds, generator=seeded(), output_type="latent").frames
    assert torch.equal(by_text, masked) and torch.equal(by_text, bare)


def test_the_negative_prompt_matters_and_none_is_the_null_caption(pipe: Any) -> None:
    def run(**options: Any) -> torch.Tensor:
        return pipe(PROMPT, generator=seeded(), output_type="latent", **options).frames

    null = run()
    assert torch.equal(run(negative_prompt=""), null)
    assert torch.equal(run(negative_prompt_embeds=pipe.encode_prompt(PROMPT)[1]), null)
    negative = run(negative_prompt="a blue ring")
    assert not torch.equal(negative, null)
    assert torch.equal(run(negative_prompt=["a blue ring"]), negative)
    _, embeds, _, mask = pipe.encode_prompt(PROMPT, "a blue ring")
    assert mask.all() and torch.equal(run(negative_prompt_embeds=embeds), negative)


def test_a_prompt_per_chunk(pipe: Any) -> None:
    def run(**options: Any) -> torch.Tensor:
        return pipe(generator=seeded(), num_frames=48, output_type="latent", **options).frames

    whole = run(prompt=PROMPT)
    assert torch.equal(run(chunk_prompts=[PROMPT]), whole)
    assert torch.equal(run(chunk_prompts=[PROMPT, PROMPT]), whole)
    changed = run(chunk_prompts=[PROMPT, "a blue ring"])
    assert torch.equal(changed[:, :, :6], whole[:, :, :6])
    assert not torch.equal(changed[:, :, 6:], whole[:, :, 6:])


def test_guidance_of_one_is_a_single_pass(pipe: Any) -> None:
    batches: list[int] = []
    hook = pipe.transformer.register_forward_hook(
        lambda module, args, output: batches.append(output.sample.shape[0])
    )
    try:
        plain = pipe(PROMPT, guidance_scale=1.0, generator=seeded(), output_type="latent").frames
        assert batches == [1] * STEPS_OF_ONE_CHUNK and not pipe.do_classifier_free_guidance
        batches.clear()
        guided = pipe(PROMPT, guidance_scale=7.0, generator=seeded(), output_type="latent").frames
        assert max(batches) == 2 and pipe.do_classifier_free_guidance
    finally:
        hook.remove()
    assert not torch.equal(plain, guided)
    default = pipe(PROMPT, guidance_scale=7.5, generator=seeded(), output_type="latent").frames
    assert torch.equal(default, pipe(PROMPT, generator=seeded(), output_type="latent").frames)
    stronger = pipe(PROMPT, prev_chunk_scale=2.0, generator=seeded(), output_type="latent").frames
    assert not torch.equal(stronger, default)


def test_steps_are_rounded_up_to_whole_windows(pipe: Any) -> None:
    with pytest.warns(UserWarning, match="50 is not a multiple of 4; using 52"):
        pipe(PROMPT, num_inference_steps=50)
    assert pipe.num_timesteps == 52


@pytest.mark.parametrize("num_frames", [81, 24, 30, 5])
def test_num_frames_is_exact(pipe: Any, i2v: Any, v2v: Any, num_frames: int) -> None:
    assert pipe(PROMPT, num_frames=num_frames).frames.shape[1] == num_frames
    assert i2v(picture(), PROMPT, num_frames=num_frames).frames.shape[1] == num_frames
    total = num_frames + 24
    assert v2v(clip(24), PROMPT, num_frames=total).frames.shape[1] == total
    latent = pipe(PROMPT, num_frames=num_frames, output_type="latent").frames
    assert latent.shape[2] == -(-num_frames // 4)


def test_the_first_latent_frame_is_the_picture(i2v: Any) -> None:
    given = picture(5)
    latent = i2v(given, PROMPT, generator=seeded(), output_type="latent").frames
    frame = torch.from_numpy(np.array(given)).permute(2, 0, 1)[None, :, None]
    assert torch.equal(latent[:, :, :1], i2v.vae.encode_frames(frame))
    as_array = i2v(np.asarray(given), PROMPT, generator=seeded(), output_type="latent").frames
    as_tensor = torch.from_numpy(np.array(given)).permute(2, 0, 1) / 255
    as_tensor = i2v(as_tensor, PROMPT, generator=seeded(), output_type="latent").frames
    assert torch.equal(latent, as_array) and torch.equal(latent, as_tensor)


@pytest.mark.parametrize("given", [8, 24, 32])
def test_a_given_video_comes_first_and_unchanged(v2v: Any, given: int) -> None:
    video = clip(given)
    frames = v2v(video, PROMPT, num_frames=given + 30, generator=seeded()).frames
    assert frames.shape[1] == given + 30
    wanted = np.stack([np.asarray(p) for p in video]) / 255
    assert np.abs(frames[0, :given] - wanted).max() < 1e-6
    new = v2v(video, PROMPT, num_frames=30, keep_prefix=False, generator=seeded()).frames
    assert np.array_equal(new, frames[:, given:])
    latent = v2v(video, PROMPT, num_frames=given + 30, output_type="latent").frames
    assert latent.shape[2] == given // 4 + 8


def test_given_frames_are_scaled_and_cut_at_the_front(v2v: Any) -> None:
    video = [picture(i, size=(20, 44)) for i in range(27)]
    frames = v2v(video, PROMPT, num_frames=30).frames
    pixels = np.stack([np.asarray(p) for p in video])
    wanted = resize_frames(pixels, height=32, width=32) / 255
    assert np.abs(frames[0, :24] - wanted[3:]).max() < 1e-6


def test_too_few_or_too_many_given_frames(v2v: Any) -> None:
    with pytest.raises(ShapeError, match="video: expected at least 4 frames, got 3"):
        v2v(clip(3), PROMPT)
    with pytest.raises(ConfigError, match="num_frames: expected more than the 24 given frames"):
        v2v(clip(24), PROMPT, num_frames=24)


@pytest.mark.parametrize(
    ("kind", "num_frames", "frames"),
    [
        ("t2v", 24, 24),
        ("t2v", 96, 96),
        ("i2v", 24, 48),
        ("i2v", 96, 120),
        ("v2v", 24, 37),
        ("v2v", 96, 109),
        ("v2v P=6", 24, 24),
    ],
)
def test_official_lengths(
    pipe: Any, i2v: Any, v2v: Any, kind: str, num_frames: int, frames: int
) -> None:
    """The official code never trims, and adds the prefix on top."""
    options = {"num_frames": num_frames, "official_compat": True}
    if kind == "t2v":
        video = pipe(PROMPT, **options)
    elif kind == "i2v":
        video = i2v(picture(), PROMPT, **options)
    else:
        video = v2v(clip(24 if "P=6" in kind else 32), PROMPT, **options)
    assert video.frames.shape[1] == frames


def test_distilled_weights_are_sampled_as_such(tiny_checkpoint: Path, tiny_distilled: Path) -> None:
    distilled = quiet(Magi1Pipeline.from_pretrained(tiny_distilled))
    frames = distilled(PROMPT, generator=seeded(), output_type="latent").frames
    same = distilled(PROMPT, generator=seeded(), enable_distillation=True, output_type="latent")
    assert torch.equal(same.frames, frames)
    with pytest.raises(ValueError, match="enable_distillation=False on a distilled checkpoint"):
        distilled(PROMPT, enable_distillation=False)
    base = quiet(Magi1Pipeline.from_pretrained(tiny_checkpoint))
    with pytest.raises(ValueError, match="enable_distillation=True on a base checkpoint"):
        base(PROMPT, enable_distillation=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 40}, "height: expected a multiple of 16, got 40. hint: use"),
        ({"width": 0}, "width: expected a multiple of 16, got 0. hint: use 16"),
        ({"num_frames": 0}, "num_frames: expected at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected at least 1"),
        ({"prompt": 7}, "prompt: expected str or list, got int"),
        ({"prompt": None}, "prompt: expected exactly one of"),
        ({"prompt_embeds": torch.zeros(1, 2, 128)}, "got prompt and prompt_embeds"),
        ({"prompt": " "}, "prompt: expected text"),
        ({"use_hq_token": True}, "a table of special tokens"),
    ],
)
def test_wrong_arguments_are_value_errors(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": PROMPT, **options})


def test_wrong_pictures_are_value_errors(i2v: Any, v2v: Any) -> None:
    with pytest.raises(ValueError, match="image: expected one PIL picture"):
        i2v(None, PROMPT)
    with pytest.raises(ValueError, match="picture: expected a PIL picture"):
        i2v(np.zeros((4, 4)), PROMPT)
    with pytest.raises(ValueError, match="video: expected a list of pictures"):
        v2v(picture(), PROMPT)
    with pytest.raises(ValueError, match="did you mean 'guidance_scale'"):
        v2v(clip(4), PROMPT, guidence_scale=3)

"""Magic 1-For-1 on tiny random networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

from onereel.core.errors import ConfigError, ShapeError
from onereel.models.magic_dit.presets import config_from_official
from onereel.models.magic_vae.model import encode_latent
from onereel.models.magic_vae.weights import config_from_official as vae_config_from_official
from onereel.pipelines.magic141 import Magic141ImageToVideoPipeline
from onereel.pipelines.magic141_t2v import Magic141Pipeline
from onereel.pipelines.magic_sampling import MagicSampleConfig
from onereel.pipelines.picture_sources import SourcePicture
from onereel.samplers.flow_match import official_noise

PROMPT = "a red disc"
SIZE = {"height": 32, "width": 48}
SAMPLING = {"prompt_crop": None, "prompt_tokens": 32, "num_frames": 9, "num_steps": 2}


@pytest.fixture(scope="module")
def pipe(llava_parts: dict[str, Any]) -> Any:
    dit = {
        "hidden_size": 32,
        "heads_num": 2,
        "mm_double_blocks_depth": 1,
        "mm_single_blocks_depth": 1,
        "rope_dim_list": (4, 6, 6),
        "text_states_dim": 8,
        "text_states_dim_2": 8,
    }
    vae = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = HunyuanVideoTransformer3DModel(**config_from_official(dit)).eval()
        for name, parameter in transformer.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
        pipeline = Magic141ImageToVideoPipeline(
            **llava_parts,
            transformer=transformer,
            vae=AutoencoderKLHunyuanVideo(**vae_config_from_official(vae)[0]).eval(),
            sampling=SAMPLING,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0) -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def latent(pipe: Any, *args: Any, **options: Any) -> torch.Tensor:
    defaults = {"generator": seeded(), "output_type": "latent", **SIZE}
    frames = pipe(*(args or (picture(), PROMPT)), **{**defaults, **options}).frames
    assert isinstance(frames, torch.Tensor)
    return frames


def test_every_output_type_shows_the_same_video(pipe: Any) -> None:
    made = {
        kind: pipe(picture(), PROMPT, generator=seeded(), output_type=kind, **SIZE).frames
        for kind in ("np", "pt", "pil", "latent")
    }
    assert made["np"].shape == (1, 9, 32, 48, 3) and made["np"].std() > 0.01
    assert np.array_equal(made["pt"].permute(0, 1, 3, 4, 2).numpy(), made["np"])
    assert len(made["pil"][0]) == 9 and made["pil"][0][0].size == (48, 32)
    assert made["latent"].shape == (1, 16, 3, 4, 6)
    unscaled = made["latent"] / pipe.vae.config.scaling_factor
    decoded = (pipe.vae.decode(unscaled).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded.transpose(1, 2), made["pt"], atol=1e-5, rtol=0)
    (frames,) = pipe(picture(), PROMPT, generator=seeded(), return_dict=False, **SIZE)
    assert np.array_equal(frames, made["np"])


def test_picture_prompt_and_seed_decide(pipe: Any) -> None:
    base = latent(pipe)
    assert torch.equal(latent(pipe), base)
    assert not torch.equal(latent(pipe, picture(1), PROMPT), base)
    assert not torch.equal(latent(pipe, picture(), "a blue ring"), base)
    assert not torch.equal(latent(pipe, generator=seeded(1)), base)
    assert not torch.equal(latent(pipe, num_inference_steps=3), base)


def test_guidance_uses_the_negative_prompt(pipe: Any) -> None:
    single = latent(pipe)
    assert torch.equal(latent(pipe, guidance_scale=1.0, negative_prompt="grey"), single)
    one = latent(pipe, guidance_scale=3.0, negative_prompt="grey")
    other = latent(pipe, guidance_scale=3.0, negative_prompt="blurred")
    assert not torch.equal(one, single) and not torch.equal(one, other)
    same = latent(pipe, guidance_scale=3.0, negative_prompt=PROMPT)
    torch.testing.assert_close(same, single, atol=1e-4, rtol=1e-4)


def test_batches_are_videos_of_their_own(pipe: Any) -> None:
    both = latent(pipe, picture(), [PROMPT, "a blue ring"], generator=[seeded(1), seeded(2)])
    assert both.shape[0] == 2
    assert torch.equal(both[:1], latent(pipe, generator=seeded(1)))
    pair = latent(pipe, num_videos_per_prompt=2)
    assert torch.equal(pair[:1], latent(pipe)) and not torch.equal(pair[0], pair[1])


def test_long_videos_continue_from_their_last_picture(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onereel.pipelines import magic_sampling

    given = []

    def watched(vae: Any, video: torch.Tensor, **options: Any) -> torch.Tensor:
        given.append(video[0, :, 0])
        return encode_latent(vae, video, **options)

    monkeypatch.setattr(magic_sampling, "encode_latent", watched)
    settings = {**SAMPLING, "segment_frames": 9}
    long = Magic141ImageToVideoPipeline(**pipe.components, sampling=settings)
    long.set_progress_bar_config(disable=True)
    options = {"generator": seeded(), "output_type": "pt", **SIZE}
    frames = long(picture(), PROMPT, num_frames=21, **options).frames
    assert frames.shape[1] == 21  # 9, then 8 new ones and 4 of a shorter last segment
    assert len(given) == 3
    for last, start in ((8, given[1]), (16, given[2])):
        torch.testing.assert_close(frames[0, last] * 2 - 1, start, atol=1e-5, rtol=0)
    short = long(picture(), PROMPT, **{**options, "generator": seeded()}).frames
    torch.testing.assert_close(frames[:, :9], short)


def test_latents_take_the_noise_s_place(pipe: Any) -> None:
    noise = torch.randn(1, 16, 3, 4, 6, generator=seeded(3))
    first = latent(pipe, latents=noise)
    assert not torch.equal(first, latent(pipe, latents=-noise))
    with pytest.raises(ShapeError, match=r"latents: expected \(1, 16, 3, 4, 6\)"):
        latent(pipe, latents=noise[:, :, :2])


def test_official_noise_follows_the_picture_s(pipe: Any) -> None:
    generator = seeded(39)
    pixels = torch.zeros(1, 3, 1, 32, 48)
    encode_latent(pipe.vae, pixels, generator=generator)  # its draws come first
    noise = official_noise((1, 16, 3, 4, 6), generator, dtype=torch.float32)
    want = latent(pipe, generator=seeded(39), official_compat=True)
    got = latent(pipe, generator=seeded(39), official_compat=True, latents=noise)
    assert torch.equal(got, want)
    assert not torch.equal(latent(pipe, generator=seeded(39)), want)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_inversion_moves_the_start_a_little(pipe: Any, scale: float) -> None:
    settings = {**SAMPLING, "inversion": True}
    inverted = Magic141ImageToVideoPipeline(**pipe.components, sampling=settings)
    inverted.set_progress_bar_config(disable=True)
    plain = latent(pipe, guidance_scale=scale)
    moved = latent(inverted, guidance_scale=scale)
    assert not torch.equal(moved, plain)
    assert (moved - plain).abs().max() < 0.05 * plain.abs().max()


def test_callbacks_see_and_change_the_latents(pipe: Any) -> None:
    seen = []

    def watch(_pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    out = latent(pipe, callback_on_step_end=watch)
    assert [step for step, _ in seen] == [0, 1]
    assert seen[0][1] == 1000 and seen[1][1] == pytest.approx(1000 * 5 * 0.5 / (1 + 4 * 0.5))
    assert out.count_nonzero() == 0


def test_the_picture_chooses_the_bucket(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onereel.pipelines import magic141

    sizes = []

    class Stop(Exception):
        pass

    def watched(_dit: Any, _vae: Any, *, request: Any, **_options: Any) -> Any:
        sizes.append(tuple(request.picture.shape[2:]))
        raise Stop

    monkeypatch.setattr(magic141, "stream_segments", watched)
    for size in ((64, 36), (36, 64)):
        with pytest.raises(Stop):
            pipe(picture().resize(size), PROMPT)
    assert sizes == [(544, 960), (960, 544)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None}, "image: expected a PIL picture"),
        ({"image": np.zeros(12, np.uint8)}, "frames: expected uint8"),
        ({"prompt": ""}, "prompt: expected one or more texts"),
        ({"width": None}, "both or none"),
        ({"height": 40}, "height: expected a multiple of 16, got 40. hint: use 32"),
        ({"num_frames": 10}, "num_frames: expected a multiple of 4 plus 1, got 10. hint: use 9"),
        ({"output_type": "tensor"}, "output_type"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "tensor_inputs"),
    ],
)
def test_wrong_arguments_are_refused(pipe: Any, options: dict[str, Any], message: str) -> None:
    call = {"image": picture(), "prompt": PROMPT, **SIZE, **options}
    with pytest.raises((ConfigError, ShapeError), match=message):
        pipe(**call)


def test_settings_are_strict() -> None:
    assert len(MagicSampleConfig(num_frames=1441).segments()) == 12
    assert not MagicSampleConfig().guided and MagicSampleConfig(guidance_scale=1.2).guided
    with pytest.raises(ConfigError, match="segment_frames"):
        MagicSampleConfig(num_frames=9, segment_frames=1)


def test_adapters_of_both_layouts(pipe: Any) -> None:
    down, up = (torch.randn(size, generator=seeded(7)) for size in ((4, 32), (32, 4)))
    name = "transformer_blocks.0.attn.to_out.0"
    adapters = {
        "diffusers": {
            f"transformer.{name}.lora_A.weight": down,
            f"transformer.{name}.lora_B.weight": up,
        },
        "official": {
            "transformer.double_blocks.0.img_attn_proj.lora_A.weight": down,
            "transformer.double_blocks.0.img_attn_proj.lora_B.weight": up,
            "transformer.double_blocks.0.img_attn_qkv.lora_A.weight": down,
            "transformer.double_blocks.0.img_attn_qkv.lora_B.weight": torch.zeros(96, 4),
        },
    }
    plain, made = latent(pipe), []
    for state in adapters.values():
        pipe.load_lora_weights(dict(state))
        made.append(latent(pipe))
        pipe.unload_lora_weights()
    assert not torch.allclose(made[0], plain, atol=1e-3)
    torch.testing.assert_close(made[0], made[1])
    assert torch.equal(latent(pipe), plain)


def test_a_saved_pipeline_is_the_same(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = Magic141ImageToVideoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.sampling == pipe.sampling
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        stored = getattr(loaded, name).state_dict()
        for key, value in getattr(pipe, name).state_dict().items():
            assert torch.equal(stored[key], value)
    # Not to the bit: weights from a file lie elsewhere in memory, and some processors add up in
    # another order there.
    torch.testing.assert_close(latent(loaded), latent(pipe), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def text_pipe(pipe: Any) -> Any:
    pipeline = Magic141Pipeline(**pipe.components, sampling=SAMPLING)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_text_to_video_is_a_picture_and_its_video(pipe: Any, text_pipe: Any) -> None:
    made = text_pipe(PROMPT, generator=seeded(), output_type="latent", **SIZE)
    assert made.frames.shape == (1, 16, 3, 4, 6) and "at one frame" in made.origins[0]
    (image,) = made.images
    assert image.size == (48, 32) and np.asarray(image).std() > 1
    again = text_pipe(PROMPT, generator=seeded(), output_type="latent", image=image, **SIZE)
    assert torch.equal(again.frames, made.frames) and again.origins == ["the given picture"]
    other = text_pipe("a blue ring", generator=seeded(), output_type="latent", **SIZE)
    assert other.images[0].tobytes() != image.tobytes()
    blue = PIL.Image.new("RGB", (60, 40), (0, 0, 255))
    swapped = text_pipe(PROMPT, generator=seeded(), output_type="latent", image=blue, **SIZE)
    assert not torch.equal(swapped.frames, made.frames)


def test_text_to_video_takes_any_source(text_pipe: Any) -> None:
    asked = []

    def source(prompt: str, *, height: int, width: int, seed: int) -> SourcePicture:
        asked.append((prompt, height, width, seed))
        return SourcePicture(np.full((40, 60, 3), len(asked), np.uint8), f"picture {len(asked)}")

    made = text_pipe([PROMPT, "a ring"], num_videos_per_prompt=2, source=source, **SIZE)
    assert made.frames.shape == (4, 9, 32, 48, 3)
    assert made.origins == [f"picture {i}" for i in (1, 2, 3, 4)]
    assert [a[0] for a in asked] == [PROMPT, PROMPT, "a ring", "a ring"]
    assert len({a[3] for a in asked}) == 4 and asked[0][1:3] == (32, 48)
    frames, images, origins = text_pipe(
        PROMPT, source=source, return_dict=False, output_type="pil", **SIZE
    )
    assert len(frames[0]) == 9 and images[0].size == (60, 40) and origins == ["picture 5"]
    text_pipe.source = source
    assert text_pipe(PROMPT, **SIZE).origins == ["picture 6"]
    text_pipe.source = None


def test_text_to_video_refuses(text_pipe: Any) -> None:
    for options, message in (
        ({"prompt": ""}, "one or more texts"),
        ({"image": picture(), "source": lambda *_: None}, "one of them"),
        ({"latents": torch.zeros(1)}, "Magic141ImageToVideoPipeline"),
        ({"width": 50}, "multiple of 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            text_pipe(**{"prompt": PROMPT, **SIZE, **options})

"""The examples of the public MAGI-1 documentation, importing from `onereel`.

Changed are only the checkpoint (tiny, local), the sizes and step counts, and the device, which is
the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import decode, write_counting_video
from diffusers.hooks.group_offloading import apply_group_offloading
from PIL import Image
from transformers import T5EncoderModel

from onereel import (
    AutoencoderKLMagi1,
    AutoModel,
    Magi1ImageToVideoPipeline,
    Magi1Pipeline,
    Magi1VideoToVideoPipeline,
)
from onereel.media import VideoWriter, load_image, read_video

# The documentation says torch_dtype, which newer diffusers call dtype.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]
PROMPT = """
A majestic eagle soaring over a mountain landscape. The eagle's wings are spread wide,
catching the golden sunlight as it glides through the clear blue sky.
"""
NEGATIVE = "Poor quality, blurry, pixelated, low resolution, distorted proportions"
SIZE = {"height": 32, "width": 48}


def export_to_video(frames: np.ndarray, path: Path, fps: int) -> None:
    """Ours in the place of diffusers' function, which needs packages that we do not."""
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=fps) as writer:
        writer.write((frames * 255).round().astype(np.uint8))


def load_text_to_video(folder: Path) -> tuple[Any, Any, Any]:
    name = str(folder)
    text_encoder = T5EncoderModel.from_pretrained(
        name, subfolder="text_encoder", dtype=torch.bfloat16
    )
    vae = AutoModel.from_pretrained(name, subfolder="vae", torch_dtype=torch.float32)
    transformer = AutoModel.from_pretrained(
        name, subfolder="transformer", torch_dtype=torch.bfloat16
    )
    return text_encoder, vae, transformer


def build_pipeline(folder: Path, text_encoder: Any, vae: Any, transformer: Any) -> Any:
    pipeline = Magi1Pipeline.from_pretrained(
        str(folder),
        vae=vae,
        transformer=transformer,
        text_encoder=text_encoder,
        torch_dtype=torch.bfloat16,
    )
    pipeline.to("cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_text_to_video(pipeline: Any) -> np.ndarray:
    return pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=24,
        guidance_scale=7.0,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        **SIZE,
    ).frames[0]


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path) -> np.ndarray:
    """The video without offloading or compiling."""
    return run_text_to_video(build_pipeline(tiny_checkpoint, *load_text_to_video(tiny_checkpoint)))


def test_text_to_video_with_group_offloading(
    tiny_checkpoint: Path, tmp_path: Path, plain: np.ndarray
) -> None:
    text_encoder, vae, transformer = load_text_to_video(tiny_checkpoint)
    onload_device = torch.device("cpu")
    offload_device = torch.device("cpu")
    apply_group_offloading(
        text_encoder,
        onload_device=onload_device,
        offload_device=offload_device,
        offload_type="block_level",
        num_blocks_per_group=4,
    )
    transformer.enable_group_offload(
        onload_device=onload_device,
        offload_device=offload_device,
        offload_type="leaf_level",
    )
    pipeline = build_pipeline(tiny_checkpoint, text_encoder, vae, transformer)
    output = run_text_to_video(pipeline)
    assert output.shape == (24, 32, 48, 3)
    assert np.array_equal(output, plain)
    export_to_video(output, tmp_path / "output.mp4", fps=8)
    assert decode(tmp_path / "output.mp4").shape == (24, 32, 48, 3)


def test_text_to_video_compiled(tiny_checkpoint: Path, plain: np.ndarray) -> None:
    pipeline = build_pipeline(tiny_checkpoint, *load_text_to_video(tiny_checkpoint))
    pipeline.transformer.to(memory_format=torch.channels_last)
    weight = pipeline.transformer.patch_embedding.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager", fullgraph=True)
    output = run_text_to_video(pipeline)
    assert np.abs(output - plain).mean() < 0.02  # bfloat16
    torch._dynamo.reset()


def test_image_to_video(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model_id = str(tiny_checkpoint)
    vae = AutoencoderKLMagi1.from_pretrained(model_id, subfolder="vae", torch_dtype=torch.float32)
    pipe = Magi1ImageToVideoPipeline.from_pretrained(model_id, vae=vae, torch_dtype=torch.bfloat16)
    pipe.to("cpu")
    pipe.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    image = Image.fromarray(pixels)
    with pytest.warns(UserWarning, match="50 is not a multiple of 4; using 52"):
        output = pipe(
            image=image,
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            num_frames=81,
            guidance_scale=5.0,
            num_inference_steps=50,
            **SIZE,
        ).frames[0]
    assert output.shape == (81, 32, 48, 3) and np.isfinite(output).all()
    latent = vae.encode_frames(
        torch.from_numpy(load_image(image, height=32, width=48)).permute(2, 0, 1)[None, :, None]
    )
    # The first frames show the picture as the VAE sees it; the rest of the chunk is near.
    shown = vae.decode_chunk(latent)[0, :, 0].permute(1, 2, 0).clamp(-1, 1).numpy() / 2 + 0.5
    assert np.abs(output[0] - shown).mean() < 0.15
    export_to_video(output, tmp_path / "astronaut_animation.mp4", fps=16)
    assert len(decode(tmp_path / "astronaut_animation.mp4")) == 81


def test_video_to_video(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model_id = str(tiny_checkpoint)
    vae = AutoencoderKLMagi1.from_pretrained(model_id, subfolder="vae", torch_dtype=torch.float32)
    pipe = Magi1VideoToVideoPipeline.from_pretrained(model_id, vae=vae, torch_dtype=torch.bfloat16)
    pipe.to("cpu")
    pipe.set_progress_bar_config(disable=True)
    write_counting_video(tmp_path / "input_video.mkv", 30)
    frames = read_video(tmp_path / "input_video.mkv", height=32, width=48, num_frames=24)
    video = [Image.fromarray(frame) for frame in frames]
    output = pipe(
        video=video,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=81,
        guidance_scale=5.0,
        num_inference_steps=4,
        **SIZE,
    ).frames[0]
    assert output.shape == (81, 32, 48, 3)
    assert np.abs(output[:24] - frames / 255).max() < 1e-6
    export_to_video(output, tmp_path / "video_continuation.mp4", fps=16)
    assert len(decode(tmp_path / "video_continuation.mp4")) == 81


def test_the_notes(tiny_checkpoint: Path, tiny_distilled: Path) -> None:
    """Chunk width, window, LoRA, and distillation."""
    pipe = Magi1Pipeline.from_pretrained(tiny_checkpoint)
    request_defaults = pipe.sampling
    assert request_defaults.get("window_size", 4) == 4
    lora = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 64),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.ones(64, 2),
    }
    pipe.load_lora_weights(lora)
    assert pipe.get_active_adapters() == ["default_0"]
    distilled = Magi1Pipeline.from_pretrained(tiny_distilled)
    distilled.set_progress_bar_config(disable=True)
    options = {"enable_distillation": True, "num_inference_steps": 8}
    frames = distilled(prompt=PROMPT, **options, **SIZE).frames
    assert frames.shape == (1, 24, 32, 48, 3)
    with pytest.raises(ValueError, match="enable_distillation=True on a base checkpoint"):
        pipe(prompt=PROMPT, enable_distillation=True)

"""A checkpoint that is real in every part and tiny in every size, for tests that make videos."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

SAMPLING = {"num_steps": 4, "height": 32, "width": 32, "num_frames": 24, "fps": 24}
CAPTIONS = [
    f"a {colour} {shape} {verb} on a {back} background"
    for colour, shape, verb, back in itertools.product(
        ("red", "green", "blue"), ("disc", "square", "ring"), ("bounces", "rotates"), ("white",)
    )
]


def build_checkpoint(folder: Path, *, distilled: bool = False) -> Path:
    """Write a checkpoint with random weights in the layout of `save_pretrained`."""
    import torch

    from onereel import AutoencoderKLMagi1, Magi1Pipeline, Magi1Transformer3DModel
    from onereel.models.text import build_text_encoder, train_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(CAPTIONS, folder / "tokenizer", vocab_size=256)
        text_encoder = build_text_encoder("toybox", len(tokenizer))
        transformer = Magi1Transformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            num_kv_heads=1,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=128,
            ffn_dim=128,
            num_layers=2,
            caption_max_length=256,
            enable_distillation=distilled,
        )
        vae = AutoencoderKLMagi1(
            num_attention_heads=2,
            attention_head_dim=32,
            z_dim=4,
            height=32,
            width=32,
            num_frames=12,
            ffn_dim=128,
            num_layers=1,
            with_cls_token=False,
            use_final_proj=True,
            scaling_factor=1.0,
        )
    sampling = {**SAMPLING, "distilled": True} if distilled else SAMPLING
    pipeline = Magi1Pipeline(
        tokenizer, text_encoder, transformer=transformer, vae=vae, sampling=sampling
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base weights; tests must not change it."""
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-magi")


@pytest.fixture(scope="session")
def tiny_distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with distilled weights; tests must not change it."""
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-distilled", distilled=True)

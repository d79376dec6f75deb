"""A checkpoint that is real in every part and tiny in every size, for tests that make videos."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

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


def build_llava_parts() -> dict[str, Any]:
    """Tiny Llama, LLaVA and CLIP networks, and a tokenizer of bytes with Llama 3's special tokens.

    Llama is 8 wide, a picture has 16 patches, CLIP reads 12 tokens.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPImageProcessorPil,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    special = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")
    vocabulary = {token: i for i, token in enumerate(("<pad>", "<s>", *special))}
    vocabulary |= {
        byte: len(vocabulary) + i
        for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        pad_token="<pad>",
        additional_special_tokens=list(special),
    )
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        num_hidden_layers=4,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        **sizes,
    )
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=16, patch_size=4, **sizes)
    clip = CLIPTextConfig(
        vocab_size=len(vocabulary),
        num_hidden_layers=2,
        max_position_embeddings=12,
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["<pad>"],
        **sizes,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=vocabulary["<image>"]
    )
    sides = {"height": 16, "width": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "tokenizer": tokenizer,
            "text_encoder": LlavaForConditionalGeneration(config).eval(),
            "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=sides),
            "tokenizer_2": tokenizer,
            "text_encoder_2": CLIPTextModel(clip).eval(),
        }


@pytest.fixture(scope="session")
def llava_parts() -> dict[str, Any]:
    """Components of a Magic 1-For-1 pipeline that read the prompt and the picture."""
    return build_llava_parts()


def build_magic_checkpoint(folder: Path, parts: dict[str, Any], *, pictures: bool = True) -> Path:
    """Write a Magic 1-For-1 checkpoint with random weights, as its pipeline saves it.

    Args:
        folder: to write.
        parts: what reads texts and pictures, see `build_llava_parts`.
        pictures: whether it claims to make first pictures.

    Returns:
        The folder.
    """
    import torch
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

    from onereel.models.magic_dit.presets import config_from_official
    from onereel.models.magic_vae.weights import config_from_official as vae_config
    from onereel.pipelines.magic141 import Magic141ImageToVideoPipeline
    from onereel.pipelines.magic141_t2v import Magic141Pipeline

    dit = {"hidden_size": 32, "heads_num": 2, "rope_dim_list": (4, 6, 6)}
    dit |= {"mm_double_blocks_depth": 1, "mm_single_blocks_depth": 1}
    dit |= {"text_states_dim": 8, "text_states_dim_2": 8}
    vae = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = HunyuanVideoTransformer3DModel(**config_from_official(dit)).eval()
        for name, parameter in transformer.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.2)
        decoder = AutoencoderKLHunyuanVideo(**vae_config(vae)[0]).eval()
    sampling = {"prompt_crop": None, "prompt_tokens": 32, "num_steps": 1}
    sampling |= {"num_frames": 5, "segment_frames": 5, "height": 16, "width": 32}
    kind = Magic141Pipeline if pictures else Magic141ImageToVideoPipeline
    pipeline = kind(**parts, transformer=transformer, vae=decoder, sampling=sampling)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_magic(tmp_path_factory: pytest.TempPathFactory, llava_parts: dict[str, Any]) -> Path:
    """A Magic 1-For-1 folder; tests must not change it."""
    return build_magic_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-magic", llava_parts)

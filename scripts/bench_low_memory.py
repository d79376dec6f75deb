"""Measure what --low-memory and --offload save: peak memory and time of whole renders."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, LlavaForConditionalGeneration

from onereel.models.magic_dit.presets import config_from_official
from onereel.models.magic_vae.weights import config_from_official as vae_config
from onereel.models.text.toybox_llava import (
    build_toybox_encoders,
    load_tokenizers,
    train_llama_tokenizer,
)
from onereel.pipelines.magic141_t2v import Magic141Pipeline


def build(folder: Path, width: int) -> Path:
    """Write a checkpoint of random weights; at 1024, LLaVA and transformer have 0.6 GB each."""
    train_llama_tokenizer(["a red disc bounces"], folder / "tokens")
    llama, clip = load_tokenizers(folder / "tokens")
    parts = build_toybox_encoders(llama)
    config = parts["text_encoder"].config
    config.text_config.hidden_size = width
    config.text_config.intermediate_size = 4 * width
    config.text_config.num_hidden_layers = 9
    config.text_config.head_dim = width // config.text_config.num_attention_heads
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(clip), num_hidden_layers=2, **small)
    dit: dict[str, Any] = {"hidden_size": 3 * width // 4, "heads_num": 3 * width // 256}
    dit |= {"rope_dim_list": (16, 24, 24)}
    dit |= {"mm_double_blocks_depth": 5, "mm_single_blocks_depth": 6}
    dit |= {"text_states_dim": width, "text_states_dim_2": 64}
    vae = {"block_out_channels": [16, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8}
    pipeline = Magic141Pipeline(
        llama,
        LlavaForConditionalGeneration(config).eval(),
        image_processor=parts["image_processor"],
        tokenizer_2=clip,
        text_encoder_2=CLIPTextModel(text).eval(),
        transformer=HunyuanVideoTransformer3DModel(**config_from_official(dit)).eval(),
        vae=AutoencoderKLHunyuanVideo(**vae_config(vae)[0]).eval(),
        sampling={"prompt_crop": None, "prompt_tokens": 32, "height": 64, "width": 64},
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


def render(model: str, out: Path, words: list[str]) -> tuple[float, int]:
    """Run the command; returns wall seconds and peak resident megabytes."""
    command = [sys.executable, "-m", "onereel", "generate", "a red disc", "--model", model]
    command += ["--num-frames", "9", "--seed", "0", "--no-run", "-q", "-o", str(out), *words]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}")
    return time.perf_counter() - begin, usage.ru_maxrss // 1024


def main() -> None:
    """Print one JSON line per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a Magic 1-For-1 checkpoint [one is made]")
    parser.add_argument("--width", type=int, default=1024, help="of the one that is made")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.build is not None:
        build(args.build, args.width)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = args.model or str(folder / "model")
        if args.model is None:  # elsewhere: a child's peak begins at its parent's
            again = [sys.executable, __file__, "--width", str(args.width), "--build", temporary]
            subprocess.run(again, check=True)
        for way in ((), ("--offload",), ("--low-memory",)):
            words = ["--device", args.device, *way]
            seconds, megabytes = render(model, folder / "out.mp4", words)
            name = " ".join(way) or "all networks stay"
            print(json.dumps({"way": name, "seconds": round(seconds, 1), "peak_mb": megabytes}))


if __name__ == "__main__":
    main()

"""What the instrument still sees of true clips after a VAE: pans, zooms, the rest, and decibels.

python scripts/bench_decoder.py toybox-magi/vae runs/decoder/export --noise 0 0.15

Folders of VAEs, or of a checkpoint with one. All of them decode what the first one encodes, with
noise on the latents (of their own deviation). 32 clips of pans and zooms and 72 of all motions.
`zoomed` is how far zooms come, over what was asked, and `zoom_step` the median of their steps from
frame to frame, over what was asked; medians of all zooms. With `--motions collide` 30 clips of
these motions alone.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onereel.evaluation.toybox.prompts import prompt_scores
from onereel.evaluation.toybox.tracker import track
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.magi_vae.pixels import to_uint8
from onereel.runtime.source import resolve_model
from onereel.training.pixel_losses import OBJECT_SATURATION, psnr
from onereel.world import ZOOM_RATE, sample_clip

CAMERA = ("pan", "zoom")
SECOND, LATENTS = 24, 6  # frames and latent frames of a chunk


@functools.cache
def load(name: str) -> AutoencoderKLMagi1:
    """Load a VAE in float32 from its folder, or from a checkpoint."""
    folder = (
        Path(name) if (Path(name) / "config.json").is_file() else resolve_model(name).folder("vae")
    )
    vae: AutoencoderKLMagi1 = AutoencoderKLMagi1.from_pretrained(folder)
    return vae.float()


def measure(job: tuple[int, tuple[str, ...] | None, list[str], float]) -> list[dict[str, Any]]:
    """Code one clip of two seconds, and read it after every decoder."""
    seed, motions, names, noise = job
    torch.set_num_threads(1)
    clip = sample_clip(seed, num_frames=2 * SECOND, motions=motions)
    true = np.asarray(clip.video)
    video = torch.from_numpy(true).permute(3, 0, 1, 2)[None]
    first = load(names[0])
    latent = torch.cat([first.encode_frames(part) for part in video.split(SECOND, 2)], 2)
    latent += noise * torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    pixels = true.astype(np.float64) / 255
    objects = pixels.max(-1) - pixels.min(-1) > OBJECT_SATURATION
    found = []
    for name in names:
        vae = load(name)
        decoded = torch.cat([vae.decode_chunk(part) for part in latent.split(LATENTS, 2)], 2)
        shown = to_uint8(decoded)[0].permute(1, 2, 3, 0).numpy()
        tracking = track(shown, fps=SECOND)
        scores = prompt_scores(tracking, clip.specs[0])
        error = np.square((shown.astype(np.float64) - true) / 127.5).mean(-1)
        on_objects = float(error[objects].mean()) if objects.any() else np.nan
        kept = {"event": scores["event_acc"], "all": scores["all_correct"]}
        errors = {"error": error.mean(), "on_objects": on_objects}
        row = {"motion": clip.specs[0].motion, **kept, **errors}
        if row["motion"] == "zoom":
            sign = 1 if clip.specs[0].camera == "zoom_in" else -1
            steps = sign * np.diff(np.log(tracking.camera[:, 2])) * SECOND / ZOOM_RATE
            row |= {"zoomed": steps.mean(), "zoom_step": np.median(steps)}
        found.append(row)
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count what is seen of pans and zooms, and average the rest."""
    others = [row for row in rows if row["motion"] not in CAMERA]
    zooms = [row for row in rows if row["motion"] == "zoom"]
    events = {m: [row["event"] for row in rows if row["motion"] == m] for m in CAMERA}
    steps = ("zoomed", "zoom_step") if zooms else ()
    return {
        **{f"{m}s": f"{sum(v):.0f} of {len(v)}" for m, v in events.items() if v},
        **{name: round(float(np.median([row[name] for row in zooms])), 2) for name in steps},
        "others": len(others),
        "all_right": round(float(np.mean([row["all"] for row in others])), 3),
        "psnr": round(psnr(float(np.mean([row["error"] for row in others]))), 2),
        "psnr_object": round(psnr(float(np.nanmean([row["on_objects"] for row in others]))), 2),
    }


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vae", nargs="+")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0])
    parser.add_argument("--motions", nargs="+", help="other than pan and zoom")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    clips = [(910_000 + i, CAMERA) for i in range(32)] + [(920_000 + i, None) for i in range(72)]
    if args.motions:
        clips = [(930_000 + i, tuple(args.motions)) for i in range(30)]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for noise in args.noise:
            jobs = [(seed, motions, args.vae, noise) for seed, motions in clips]
            found = pool.map(measure, jobs, chunksize=4)
            for number, name in enumerate(args.vae):
                rows = [of_clip[number] for of_clip in found]
                print(json.dumps({"vae": name, "noise": noise, **summary(rows)}), flush=True)


if __name__ == "__main__":
    main()

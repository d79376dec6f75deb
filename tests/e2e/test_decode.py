"""Denoising and decoding apart, and what is shown before anything is decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import decode, write_counting_video
from PIL import Image

from onereel.apps.cli.main import main
from onereel.media import read_metadata
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.runs.folder import RunFolder
from onereel.runtime.previews import fit_previews
from onereel.runtime.source import resolve_model

WORDS = ("a red disc bounces", "--seconds", 3.5, "--seed", 7)


@pytest.mark.parametrize("given", ["text", "image", "video", "hidden"])
def test_decoding_later_gives_the_same_frames(generate: Any, given: str) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)).save("p.png")
    write_counting_video(Path("clip.mkv"), 60)
    video = ["--video", "clip.mkv", "--prefix-frames", 28]
    more = {"text": [], "image": ["--image", "p.png"], "video": video}
    more["hidden"] = [*video, "--no-keep-prefix"]
    words = (*WORDS, *more[given])
    assert generate(*words, "-o", "whole.mp4")[0] == 0
    code, out, err = generate(*words, "-o", "a.mp4", "--latents-only")
    assert code == 0 and out.strip() == "a.run" and "`onereel decode a.run`" in err
    assert not Path("a.mp4").exists() and RunFolder(Path("a.run")).state == "latents"
    assert main(["runs", "clean", "a.run"]) == 2
    for name in ("p.png", "clip.mkv"):
        Path(name).unlink()
    assert main(["decode", "a.run"]) == 0
    assert np.array_equal(decode(Path("a.mp4")), decode(Path("whole.mp4")))
    assert RunFolder(Path("a.run")).state == "finished"
    late = ("elapsed_s", "command")
    records = [read_metadata(name) for name in ("a.mp4", "whole.mp4")]
    left, right = ({k: v for k, v in record.items() if k not in late} for record in records)
    assert left == right and left["complete"]


def test_latents_only_stays_so_when_it_is_gone_on_with(
    generate: Any, broken_off: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onereel.pipelines.keeping import ChunkEngine

    real = ChunkEngine._step

    def interrupted(engine: Any, call: Any) -> None:
        if call.chunks[0] == 2:
            raise KeyboardInterrupt
        real(engine, call)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkEngine, "_step", interrupted)
        code, _, err = generate(*WORDS, "-o", "a.mp4", "--latents-only")
    assert code == 130 and "the latents of 2.00 s are safe in a.run" in err
    # What is there can be looked at meanwhile.
    assert main(["decode", "a.run", "-o", "b.mp4"]) == 0
    record = read_metadata("b.mp4")
    assert record["frames_written"] == 48 and not record["complete"]
    assert RunFolder(Path("a.run")).state == "unfinished"
    assert main(["resume", "a.run"]) == 0
    assert RunFolder(Path("a.run")).state == "latents" and not Path("a.mp4").exists()
    assert generate(*WORDS, "-o", "whole.mp4")[0] == 0
    assert main(["decode", "a.run"]) == 0
    assert np.array_equal(decode(Path("a.mp4")), decode(Path("whole.mp4")))


@pytest.mark.filterwarnings("default:decoding ran out of memory")
def test_decoding_goes_on_in_smaller_tiles(
    generate: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*WORDS, "--size", "64x32", "-o", "a.mp4")[0] == 0  # tiles of 32 pixels
    before, latents = decode(Path("a.mp4")), (Path("a.run") / "chunks" / "000001.safetensors")
    kept, sizes, most = latents.read_bytes(), [], 1
    real = AutoencoderKLMagi1._decode_tile

    def poor(vae: Any, z: torch.Tensor, as_image: bool) -> torch.Tensor:
        sizes.append(tuple(z.shape[3:]))
        if z.shape[3] * z.shape[4] > most:
            raise torch.OutOfMemoryError("no more memory\nand a stack")
        return real(vae, z, as_image)

    monkeypatch.setattr(AutoencoderKLMagi1, "_decode_tile", poor)
    monkeypatch.setattr("onereel.pipelines.decoding.SMALLEST_TILE", 8)
    assert main(["decode", "a.run"]) == 0
    err = capsys.readouterr().err
    assert "trying again in tiles of 16 pixels" in err and "in tiles of 8 pixels" in err
    assert err.count("trying again") == 2 and sizes[-1] == (1, 1)  # not tried anew per chunk
    assert decode(Path("a.mp4")).shape == before.shape
    most = 0
    assert main(["decode", "a.run"]) == 4
    assert "latents that were kept are safe" in capsys.readouterr().err
    assert latents.read_bytes() == kept
    most = 16
    sizes.clear()
    assert main(["decode", "a.run", "--tile", "16"]) == 0 and set(sizes) == {(2, 2)}
    assert main(["decode", "a.run", "--tile", "15"]) == 2
    assert "use 16" in capsys.readouterr().err


def test_what_cannot_be_decoded(
    generate: Any, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*WORDS, "-o", "a.mp4")[0] == 0
    chunk = Path("a.run/chunks/000002.safetensors")
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-3])
    assert main(["decode", "a.run"]) == 0
    assert "decoding what lies before" in capsys.readouterr().err
    assert read_metadata("a.mp4")["frames_written"] == 48
    chunk.write_bytes(data)
    (weights,) = (tiny_checkpoint / "vae").glob("*.safetensors")
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert main(["decode", "a.run"]) == 3
        assert "the weights of model" in capsys.readouterr().err
    finally:
        weights.write_bytes(kept)
    for path in Path("a.run/chunks").iterdir():
        path.unlink()
    assert main(["decode", "a.run"]) == 2
    assert "keeps no chunk" in capsys.readouterr().err
    assert main(["decode", "nowhere"]) == 3
    for words in (["--latents-only", "--no-run"], ["--latents-only", "-o", "-"]):
        assert generate("a disc", *words)[0] == 2


def test_previews_come_before_the_frames(generate: Any, tiny_checkpoint: Path) -> None:
    assert generate(*WORDS, "-o", "a.mp4", "--latents-only")[0] == 0
    assert not Path("a.run/preview.jpg").exists()  # the tiny checkpoint has no colours
    config = tiny_checkpoint / "vae" / "config.json"
    kept = config.read_text()
    try:
        assert main(["models", "previews", str(tiny_checkpoint)]) == 0
        assert len(json.loads(config.read_text())["latent_rgb_factors"]) == 4
        assert generate(*WORDS, "-o", "b.mp4", "--latents-only")[0] == 0
    finally:
        config.write_text(kept)
    with Image.open("b.run/preview.jpg") as sheet:
        assert sheet.size == (4 * 6 * 64, 64)
    assert main(["runs", "verify", "b.run"]) == 0


def test_colours_of_latents_are_fitted(tiny_checkpoint: Path) -> None:
    from onereel.models.magi_vae.preview import LatentColours, fit_latent_rgb

    latent = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    factors, bias = torch.randn(16, 3) / 20, torch.tensor([0.1, -0.2, 0.0])
    colours = torch.einsum("bcthw,cd->bdthw", latent, factors) + bias[:, None, None, None]
    video = colours.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    found = fit_latent_rgb(latent, video)
    assert torch.allclose(torch.tensor(found[0]), factors, atol=1e-5)
    shown = LatentColours(*found)(latent[:1])
    wanted = (colours[0].permute(1, 2, 3, 0) * 127.5 + 127.5).round().clamp(0, 255)
    assert shown.shape == (3, 4, 4, 3) and (shown - wanted).abs().max() <= 1
    with pytest.raises(Exception, match="official layout"):
        official = tiny_checkpoint.parent / "official"
        assert (
            main(["models", "convert", str(tiny_checkpoint), str(official), "--to", "official"])
            == 0
        )
        fit_previews(resolve_model(str(next(official.glob("*.json")))), [])

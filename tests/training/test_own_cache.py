"""The cache of somebody's files: what is stored, when it is made again, what it costs in memory."""

from __future__ import annotations

import os
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import write_counting_video
from einops import rearrange
from PIL import Image

from onereel.core.errors import ConfigError
from onereel.media import load_image, read_video, stream_video
from onereel.models.magi_vae.model import AutoencoderKLMagi1
from onereel.models.text import encode_prompts
from onereel.runtime.text_files import load_tokenizer
from onereel.training import own_cache
from onereel.training.latent_cache import encode_chunks, encode_images
from onereel.training.own_cache import OwnCache
from onereel.training.own_files import DataReport, DataShape, OwnFile

SHAPE = DataShape(width=32, height=32, fps=24, policy="crop")


@pytest.fixture(scope="module")
def vae(tiny_checkpoint: Path) -> AutoencoderKLMagi1:
    return AutoencoderKLMagi1.from_pretrained(tiny_checkpoint / "vae").eval()


def cache_in(folder: Path, **changes: Any) -> OwnCache:
    given = {"shape": SHAPE, "vae_hash": "vae", "text_hash": "text", **changes}
    return OwnCache(folder / "cache", **given)


def report_of(*paths: Path, caption: str = "a caption") -> DataReport:
    files = [
        OwnFile(
            name=path.name, path=path, caption=caption,
            kind="picture" if path.suffix == ".png" else "video",
        )
        for path in paths
    ]  # fmt: skip
    return DataReport(data=paths[0].parent, files=files)


def ignore(done: int, wanted: int) -> None:
    del done, wanted


def encode(text: str) -> torch.Tensor:
    return torch.full((2, 3), float(len(text)))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_counting_video(tmp_path / "clip.mp4", 5 * 24 + 7)
    return tmp_path / "clip.mp4"


def test_latents_are_those_of_the_pipeline(
    vae: AutoencoderKLMagi1, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_cache, "SEGMENT_CHUNKS", 4)
    monkeypatch.setattr(own_cache, "_AT_ONCE", 2)
    Image.linear_gradient("L").resize((40, 32)).convert("RGB").save(tmp_path / "a.png")
    report, cache = report_of(video, tmp_path / "a.png"), cache_in(tmp_path)
    cache.add_files(report, vae, tell=ignore)
    cache.add_texts(report, encode, tell=ignore)
    *clips, picture = cache.clips(report.files)
    assert [clip.num_chunks for clip in clips] == [4, 1] and picture.num_chunks == 1
    frames = torch.from_numpy(read_video(video, height=32, width=32, num_frames=120))
    chunks = rearrange(frames, "(n f) h w c -> n f h w c", f=24)
    latent, images = encode_chunks(vae, chunks)
    stored = torch.cat([clip.latent(0, 6 * clip.num_chunks) for clip in clips], dim=1)
    assert torch.equal(stored, rearrange(latent, "n c t h w -> c (n t) h w").half().float())
    assert torch.equal(clips[0].latent(6, 18), stored[:, 6:18])
    assert torch.equal(clips[0].image(2), images[2].half().float())
    pixels = torch.from_numpy(load_image(tmp_path / "a.png", height=32, width=32, policy="crop"))
    (expected,) = encode_images(vae, pixels[None, None])
    assert torch.equal(picture.latent(0, 1), expected.half().float())
    assert torch.equal(picture.image(0), expected.half().float())
    assert torch.equal(picture.caption(), encode("a caption"))


def test_memory_does_not_grow_with_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeros(_vae: object, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(chunks), 4, 6, 4, 4), torch.zeros(len(chunks), 4, 1, 4, 4)

    monkeypatch.setattr(own_cache, "encode_chunks", zeros)
    peaks = []
    for chunks in (34, 102):
        path = tmp_path / f"{chunks}.mp4"
        write_counting_video(path, chunks * 24)
        report, cache = report_of(path), cache_in(tmp_path)
        tracemalloc.start()
        cache.add_files(report, None, tell=ignore)  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        cache.add_texts(report, encode, tell=ignore)
        assert sum(clip.num_chunks for clip in cache.clips(report.files)) == chunks
    assert peaks[1] < 1.2 * peaks[0]


def test_frames_stream_one_by_one_and_equal_those_read_at_once(video: Path) -> None:
    stream = stream_video(video, height=16, width=16, fps=12)
    assert (next(stream) == read_video(video, height=16, width=16, fps=12)[0]).all()
    assert len(list(stream)) == 63


def test_what_is_complete_is_not_made_again(
    vae: AutoencoderKLMagi1, video: Path, tmp_path: Path
) -> None:
    write_counting_video(tmp_path / "other.mp4", 24)
    report, cache = report_of(video, tmp_path / "other.mp4"), cache_in(tmp_path)
    said: list[tuple[int, int]] = []

    def stop(done: int, wanted: int) -> None:
        said.append((done, wanted))
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.add_files(report, vae, tell=stop)
    assert [file.name for file in cache.missing_files(report.files)] == ["other.mp4"]
    cache.add_files(report, vae, tell=lambda *pair: said.append(pair))
    assert said == [(0, 2), (1, 2), (0, 1), (1, 1)]
    assert cache.missing_files(report.files) == []
    cache.add_texts(report, encode, tell=ignore)
    assert cache.missing_texts(report.files) == []


def test_half_a_video_is_not_taken_for_a_whole_one(
    vae: AutoencoderKLMagi1, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_cache, "SEGMENT_CHUNKS", 2)
    monkeypatch.setattr(own_cache, "_AT_ONCE", 1)
    report, cache = report_of(video), cache_in(tmp_path)
    calls = []

    def fail(model: AutoencoderKLMagi1, chunks: torch.Tensor) -> Any:
        calls.append(chunks)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode_chunks(model, chunks)

    monkeypatch.setattr(own_cache, "encode_chunks", fail)
    with pytest.raises(KeyboardInterrupt):
        cache.add_files(report, vae, tell=ignore)
    assert len(list((tmp_path / "cache" / "clips").iterdir())) == 1  # a segment, no entry
    assert len(cache.missing_files(report.files)) == 1
    monkeypatch.setattr(own_cache, "encode_chunks", encode_chunks)
    cache.add_files(report, vae, tell=ignore)
    assert [clip.num_chunks for clip in cache.clips(report.files)] == [2, 2, 1]


def test_what_has_changed_is_made_again_and_the_old_removed(
    vae: AutoencoderKLMagi1, video: Path, tmp_path: Path
) -> None:
    report, cache = report_of(video), cache_in(tmp_path)
    cache.add_files(report, vae, tell=ignore)
    cache.add_texts(report, encode, tell=ignore)
    other_shape = DataShape(width=32, height=32, fps=24, policy="pad")
    for changes in ({"vae_hash": "other"}, {"shape": other_shape}):
        assert cache_in(tmp_path, **changes).missing_files(report.files) == report.files
        assert cache_in(tmp_path, **changes).missing_texts(report.files) == []
    other = cache_in(tmp_path, text_hash="other")
    assert other.missing_files(report.files) == []
    assert other.missing_texts(report.files) == ["a caption"]
    assert cache.missing_texts(report_of(video, caption="new").files) == ["new"]
    before = cache.clips(report.files)
    assert cache.remove_stale(before) == 0
    state = video.stat()
    os.utime(video, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert cache.missing_files(report.files) == report.files
    cache.add_files(report, vae, tell=ignore)
    assert cache.remove_stale(cache.clips(report.files)) == 2
    assert not before[0].latents.exists() and cache.clips(report.files)[0].latents.exists()


def test_what_turns_out_broken_or_short_is_left_out(
    vae: AutoencoderKLMagi1, video: Path, tmp_path: Path
) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    write_counting_video(tmp_path / "short.mp4", 23)
    report = report_of(tmp_path / "cut.png", video, tmp_path / "short.mp4")
    cache = cache_in(tmp_path)
    cache.add_files(report, vae, tell=ignore)
    assert [file.name for file in report.files] == ["clip.mp4"]
    assert [finding.file for finding in report.skipped] == ["cut.png", "short.mp4"]
    assert "damaged" in report.skipped[0].text and "too short" in report.skipped[1].text


def test_ten_thousand_words_are_cut_with_a_note_that_names_the_limit(
    tiny_checkpoint: Path, video: Path, tmp_path: Path
) -> None:
    from transformers import T5EncoderModel

    tokenizer = load_tokenizer(tiny_checkpoint / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(tiny_checkpoint / "text_encoder").eval()

    def read(text: str) -> torch.Tensor:
        return encode_prompts(text, tokenizer, encoder=encoder, max_length=256).visible()[0]

    words = "a red disc bounces " * 2500
    report, cache = report_of(video, caption=words.strip()), cache_in(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.add_texts(report, read, tell=ignore)
    (note,) = report.notes
    assert note.file == "clip.mp4" and "the text encoder reads 256 tokens; dropped" in note.text
    again = report_of(video, caption=words.strip())
    cache.recall_notes(again)
    assert again.notes == report.notes
    endless = report_of(video, caption="word " * 30_000)
    cache.add_texts(endless, read, tell=ignore)
    assert endless.files == [] and "at most 100000 characters" in endless.skipped[0].text
    with pytest.raises(ConfigError):
        endless.require_usable()

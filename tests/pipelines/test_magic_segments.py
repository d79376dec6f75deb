"""Long videos of Magic 1-For-1: what is carried over, how they are decoded, what is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from onereel.core.errors import ConfigError, OutOfMemory
from onereel.models.magic_dit.model import MagicCondition
from onereel.models.magic_vae.model import VaeTiles, decode_latent, set_tiles
from onereel.models.magic_vae.weights import config_from_official
from onereel.pipelines.magic_sampling import (
    MagicRequest,
    MagicSampleConfig,
    SegmentDecoder,
    stream_segments,
    usual_size,
)
from onereel.samplers.segments import channel_statistics

LATENT = MagicSampleConfig(
    num_steps=1, num_frames=53, segment_frames=21, continuation="latent", overlap_latents=2
)


class Transformer:
    """Moves the noise a little by what it is told, and remembers the image prior."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.priors: list[torch.Tensor] = []
        self.texts: list[float] = []

    def __call__(self, hidden_states: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
        self.priors.append(hidden_states[:, 4:])
        text = options["encoder_hidden_states"].mean()
        self.texts.append(float(text))
        noise, reference = hidden_states[:, :4], hidden_states[:, 4:8]
        return (0.9 * noise - 0.1 * reference - text,)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo:
    config = config_from_official(
        {
            "block_out_channels": [4, 4, 4, 4],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": 4,
        }
    )[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKLHunyuanVideo(**config).eval()
    set_tiles(model, VaeTiles(size=32, num_frames=16))
    return model


def condition(value: float = 0.0) -> MagicCondition:
    return MagicCondition(torch.full((1, 2, 3), value), torch.ones(1, 2), torch.zeros(1, 3))


def request_of(config: MagicSampleConfig, *values: float) -> MagicRequest:
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    conditions = tuple(condition(value) for value in values or (0.0,))
    return MagicRequest(
        picture=picture, conditions=conditions, negative=None, config=config, seed=3
    )


@torch.no_grad()
def made(vae: Any, config: MagicSampleConfig, *values: float, **options: Any) -> Any:
    network = Transformer()
    parts = list(stream_segments(network, vae, request=request_of(config, *values), **options))
    latent = torch.cat([part.latent for part in parts], dim=2)
    return network, latent, torch.cat([part.frames for part in parts])


@torch.no_grad()
def test_smaller_tiles_where_memory_runs_out(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(LATENT, num_frames=5)
    (segment,) = config.segments()
    latent = torch.randn(1, 4, 2, 8, 16, generator=torch.Generator().manual_seed(1))
    real = vae.decode

    def full(latents: torch.Tensor) -> Any:
        if vae.tile_sample_min_height > 64:
            raise MemoryError
        return real(latents)

    tiles = VaeTiles(size=256, num_frames=16)
    set_tiles(vae, dataclasses.replace(tiles, size=64))
    (wanted,) = SegmentDecoder(vae, config).push(segment, latent, last=True)
    set_tiles(vae, tiles)
    monkeypatch.setattr(vae, "decode", full)
    with pytest.raises(OutOfMemory, match="official tiles"):
        list(SegmentDecoder(vae, config, official_compat=True).push(segment, latent, last=True))
    with pytest.warns(UserWarning, match="tiles of 64 pixels"):
        (frames,) = SegmentDecoder(vae, config).push(segment, latent, last=True)
    set_tiles(vae, VaeTiles(size=32, num_frames=16))
    assert torch.equal(frames, wanted) and frames.shape == (5, 3, 64, 128)


@torch.no_grad()
def test_latents_are_carried_over_and_the_whole_is_one_video(vae: Any) -> None:
    network, latent, frames = made(vae, LATENT)
    assert latent.shape == (1, 4, 14, 2, 3) and frames.shape == (53, 3, 16, 24)
    whole = (decode_latent(vae, latent) * 2 - 1)[0].transpose(0, 1)
    assert torch.equal(frames, whole)
    assert [prior[:, 4].amax((0, 2, 3)).sum() for prior in network.priors] == [1, 2, 2]
    for number, start in ((1, 4), (2, 8)):  # segments of 6, 4 of them new
        assert torch.equal(network.priors[number][:, :4, :2], latent[:, :, start : start + 2])


@torch.no_grad()
def test_frames_come_before_the_video_is_complete(vae: Any) -> None:
    done = []
    for part in stream_segments(Transformer(), vae, request=request_of(LATENT)):
        done.append((part.index, part.latent.shape[2], len(part.frames)))
    assert sum(frames for index, _, frames in done if index < 2) > 21
    assert sum(latents for _, latents, _ in done) == 14


def test_pictures_are_carried_over_by_default(vae: Any) -> None:
    config = dataclasses.replace(LATENT, continuation="picture", num_frames=41)
    network, latent, frames = made(vae, config)
    assert len(frames) == 41 and latent.shape[2] == 11
    assert [prior[:, 4].amax((0, 2, 3)).sum() for prior in network.priors] == [1, 1]
    whole = (decode_latent(vae, latent[:, :, :6]) * 2 - 1)[0].transpose(0, 1)
    assert torch.equal(frames[:21], whole)


@pytest.mark.parametrize("continuation", ["picture", "latent"])
def test_every_segment_has_its_prompt(vae: Any, continuation: Any) -> None:
    config = dataclasses.replace(LATENT, continuation=continuation)
    network, latent, _ = made(vae, config, 1.0, 2.0)
    assert network.texts == [1.0, *[2.0] * (len(config.segments()) - 1)]
    assert torch.equal(made(vae, config, 1.0)[1][:, :, :6], latent[:, :, :6])


@pytest.mark.parametrize("continuation", ["picture", "latent"])
def test_the_anchor_holds_the_colours(vae: Any, continuation: Any) -> None:
    config = dataclasses.replace(LATENT, continuation=continuation)
    _, drifting, _ = made(vae, config, 0.0, 5.0)
    _, held, _ = made(vae, dataclasses.replace(config, colour_anchor=1.0), 0.0, 5.0)
    assert torch.equal(held[:, :, :6], drifting[:, :, :6])
    first = channel_statistics(drifting[:, :, :6])[0]
    far, near = (channel_statistics(x[:, :, 6:])[0] - first for x in (drifting, held))
    assert far.abs().max() > 2 and near.abs().max() < 1


@pytest.mark.parametrize("continuation", ["picture", "latent"])
@pytest.mark.parametrize("official_compat", [False, True])
def test_kept_segments_are_gone_on_with(vae: Any, continuation: Any, official_compat: bool) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.kept: dict[int, torch.Tensor] = {}

        def load(self, index: int) -> torch.Tensor | None:
            return self.kept.get(index)

        def save(self, index: int, latent: torch.Tensor) -> None:
            self.kept[index] = latent.clone()

    config = dataclasses.replace(LATENT, continuation=continuation, colour_anchor=0.5)
    keeper = Keeper()
    request = dataclasses.replace(request_of(config), official_compat=official_compat)
    with torch.no_grad():
        whole = list(stream_segments(Transformer(), vae, request=request, keeper=keeper))
        count = len(keeper.kept)
        keeper.kept = {index: keeper.kept[index] for index in (0, 1)}
        network = Transformer()
        again = list(stream_segments(network, vae, request=request, keeper=keeper))
    assert len(network.priors) == count - 2 and len(keeper.kept) == count
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.latent, other.latent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"continuation": "frames"}, "continuation: expected picture or latent"),
        ({"colour_anchor": 2.0}, "colour_anchor: expected 0 to 1"),
        ({"height": 64}, "both or none"),
        ({"continuation": "latent", "overlap_latents": 31, "num_frames": 241}, "overlap"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MagicSampleConfig(**values)


def test_the_size_is_the_checkpoint_s_or_a_bucket() -> None:
    assert usual_size(MagicSampleConfig(height=64, width=48), (9, 16)) == (64, 48)
    assert usual_size(MagicSampleConfig(), (9, 16)) == (960, 544)
    assert usual_size(MagicSampleConfig()) == (544, 960)

"""LPIPS: what loading accepts and refuses, and what the distance must do on any weights.

That values are the official ones is shown by tests/parity/test_evaluation_quality.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from onereel.core.errors import CheckpointError, ConfigError, ShapeError
from onereel.evaluation.networks.lpips import Lpips, load_lpips, lpips_frames

State = dict[str, torch.Tensor]


def _files() -> tuple[State, State]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Lpips("alex")
    backbone = {k: v.clone() for k, v in network.features.state_dict(prefix="features.").items()}
    heads = {
        f"lin{k}.model.1.weight": head.weight.detach().abs() for k, head in enumerate(network.heads)
    }
    return backbone, heads


def _saved(folder: Path, backbone: State, heads: State) -> tuple[Path, Path]:
    torch.save(backbone, folder / "alexnet.pth")
    torch.save(heads, folder / "alex.pth")
    return folder / "alexnet.pth", folder / "alex.pth"


def _video(num: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 32, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    backbone, heads = _files()
    # A real backbone file has a classifier, too.
    backbone["classifier.1.weight"] = torch.zeros(2, 2)
    return load_lpips(*_saved(tmp_path_factory.mktemp("weights"), backbone, heads))


def test_official_names_load_from_either_format(network: Lpips, tmp_path: Path) -> None:
    backbone, heads = _files()
    save_file(backbone, tmp_path / "alexnet.safetensors")
    save_file(heads, tmp_path / "alex.safetensors")
    other = load_lpips(tmp_path / "alexnet.safetensors", tmp_path / "alex.safetensors")
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])
    assert set(other.sha256) == {"alexnet.safetensors", "alex.safetensors"}
    assert not any(p.requires_grad for p in other.parameters())


def test_the_distance_is_0_for_the_same_and_grows_with_noise(network: Lpips) -> None:
    a = _video()
    assert np.abs(lpips_frames(network, a, reference=a)).max() < 1e-7
    generator = np.random.default_rng(1)
    noise = generator.normal(size=a.shape)
    values = [
        lpips_frames(network, (a + s * noise).clip(0, 255).astype(np.uint8), reference=a).mean()
        for s in (2, 8, 32)
    ]
    assert 0 < values[0] < values[1] < values[2]


def test_batches_do_not_change_the_values(network: Lpips) -> None:
    a, b = _video(), _video(seed=1)
    whole = lpips_frames(network, a, reference=b)
    pieces = lpips_frames(network, a, reference=b, batch_size=2)
    np.testing.assert_allclose(whole, pieces, rtol=1e-5)
    np.testing.assert_allclose(whole, lpips_frames(network, b, reference=a), rtol=1e-5)


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    backbone, heads = _files()
    backbone["features.12.weight"] = backbone.pop("features.10.weight")
    backbone["features.0.bias"] = torch.zeros(63)
    with pytest.raises(CheckpointError, match="3 tensors do not fit") as caught:
        load_lpips(*_saved(tmp_path, backbone, heads))
    message = str(caught.value)
    for part in ("features.10.weight is missing", "features.12.weight is unknown", "[63], not"):
        assert part in message


def test_vgg_files_do_not_pass_for_alexnet(tmp_path: Path) -> None:
    paths = _saved(tmp_path, *_files())
    with pytest.raises(CheckpointError, match="do not fit"):
        load_lpips(*paths, net="vgg")


def test_negative_heads_are_refused(tmp_path: Path) -> None:
    backbone, heads = _files()
    heads["lin2.model.1.weight"][0, 5] = -1
    with pytest.raises(CheckpointError, match="negative"):
        load_lpips(*_saved(tmp_path, backbone, heads))


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    good, heads = _saved(tmp_path, *_files())
    with pytest.raises(CheckpointError, match="does not exist.*alexnet-owt"):
        load_lpips(tmp_path / "none.pth", heads)
    heads.write_bytes(heads.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="not readable weights"):
        load_lpips(good, heads)
    torch.save([torch.zeros(1)], heads)
    with pytest.raises(CheckpointError, match="tensors by name, got list"):
        load_lpips(good, heads)


def test_other_shapes_and_nets_are_refused(network: Lpips) -> None:
    a = _video()
    with pytest.raises(ShapeError, match="as its reference"):
        lpips_frames(network, a, reference=a[:, :31])
    with pytest.raises(ShapeError, match="31 pixels"):
        lpips_frames(network, a[:, :30], reference=a[:, :30])
    assert lpips_frames(network, a[:, :31], reference=a[:, :31]).shape == (3,)
    with pytest.raises(ConfigError, match="alex or vgg"):
        Lpips("squeeze")


def test_vgg_takes_its_smallest_picture() -> None:
    with torch.device("meta"):  # weights of any value do, and drawing them takes seconds
        network = Lpips("vgg")
    network = network.to_empty(device="cpu")
    x = torch.zeros(1, 3, 16, 16)
    assert network.layers(x, x).shape == (1, 5)
    with pytest.raises(ShapeError, match="16 pixels"):
        network(x[..., :15], x[..., :15])

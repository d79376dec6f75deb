"""One process and two say the same; what either leaves, the other goes on with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import team_runs
import torch
from torch import nn

from onereel.core.errors import CheckpointError, ConfigError
from onereel.training.distributed import Spread, Team, through
from onereel.training.engine import Trainer

# Not measurements of the losses, which are close to float32's 1e-7: Muon makes matrices orthogonal
# in bfloat16, where a rounding of the gradient may become one of 2^-9.
TOLERANCE = {"shard": 2e-6, "replicate": 1e-3}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the same runs by one process and by two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for name in ("adamw", "muon"):
        team_runs.fit(two / f"{name}-go-on", max_steps=5, muon=name == "muon")
    context = team_runs.processes()
    port = _free_port()
    ranks = [
        context.Process(target=team_runs.run_rank, args=(rank, 2, port, two, one))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    team_runs.run_small(one)
    return one, two


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def _compare(one: Path, two: Path, tolerance: float) -> None:
    left, right = _log(one), _log(two)
    clock = {"seconds", "samples_per_s", "eta_s"}
    assert [line["step"] for line in left] == [line["step"] for line in right] != []
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - clock:
            assert b[name] == pytest.approx(a[name], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize(
    ("name", "mode"),
    [("adamw", "shard"), ("muon", "replicate"), ("adamw-go-on", "shard"),
     ("muon-go-on", "replicate")],
)  # fmt: skip
def test_two_processes_lose_what_one_does(runs: tuple[Path, Path], name: str, mode: str) -> None:
    one, two = (folder / name for folder in runs)
    _compare(one, two, TOLERANCE[mode])
    weights = [torch.load(run / "export" / "weights.pt", weights_only=True) for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=TOLERANCE[mode])


def test_replicas_of_shards_lose_what_one_does(runs: tuple[Path, Path]) -> None:
    _compare(runs[0] / "adamw", runs[1] / "hybrid", TOLERANCE["shard"])


def test_sharded_runs_leave_folders_and_others_files(runs: tuple[Path, Path]) -> None:
    found = {
        run.relative_to(run.parents[1]).as_posix(): sorted(
            path.name for path in (run / "checkpoints").iterdir()
        )
        for folder in runs
        for run in (folder / "adamw-go-on", folder / "muon-go-on")
    }
    by_name = {key[:3] + key.split("/")[1]: value for key, value in found.items()}
    # Halves of the other side, then the wholes of this one.
    assert by_name["oneadamw-go-on"] == ["step-00000005", "step-00000008.pt"]
    assert by_name["twoadamw-go-on"] == ["step-00000005.pt", "step-00000008"]
    assert by_name["twomuon-go-on"] == ["step-00000005.pt", "step-00000008.pt"]


def test_damaged_shards_are_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folder = runs[1] / "adamw" / "checkpoints" / "step-00000008"
    copy = tmp_path / "checkpoints" / folder.name
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = sorted(copy.glob("*.distcp"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="step-00000008 cannot be read"):
        team_runs.fit(tmp_path)


def test_micro_batches_have_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    for count in (1, 3):
        team_runs.fit(tmp_path / str(count), accumulate=count)
    _compare(tmp_path / "1", tmp_path / "3", TOLERANCE["shard"])


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 7 items.*6"):
        team_runs.fit(tmp_path, accumulate=7)
    method = team_runs.Fit()
    method.splits = False
    with pytest.raises(ConfigError, match="Fit computes whole batches only"):
        Trainer(method, team_runs.Numbers(), config=team_runs.config(accumulate=2), out=tmp_path)


@pytest.mark.parametrize(
    ("changes", "muon", "words"),
    [
        ({"sharding": "shard"}, True, "Muon needs whole matrices.*matrix_lr=none"),
        ({"replicas": 2, "sharding": "replicate"}, False, "replicas"),
        ({"replicas": 2}, True, "replicas"),
    ],
)
def test_ways_that_do_not_go_together_are_refused(
    changes: dict[str, Any], muon: bool, words: str
) -> None:
    team = Team(rank=0, count=2, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=words):
        Spread(team_runs.Fit(muon=muon), team, config=team_runs.config(**changes))


def test_a_plain_network_is_used_as_it_is() -> None:
    layer = nn.Linear(2, 2)
    assert through(layer, lambda x: x.weight) is layer.weight


@pytest.mark.slow
def test_torchrun_trains_the_recipes_as_one_process_does(tmp_path: Path) -> None:
    # Imported here, since they take longer than all other tests of this file.
    from onereel.models.magi_vae import VAE_PRESETS
    from onereel.models.magi_vae.model import AutoencoderKLMagi1
    from onereel.models.text.tokenizer import train_tokenizer
    from onereel.training.latent_cache import CacheConfig, build_cache, write_shard
    from onereel.world import sample_captions

    data, two, one = (tmp_path / name for name in ("data", "two", "one"))
    team_runs.small_recipe("toybox-vae", data)
    torch.manual_seed(0)
    vae = AutoencoderKLMagi1(**VAE_PRESETS["tiny"]).eval()
    vae.save_pretrained(data / "vae")
    config = CacheConfig(vae=str(data / "vae"), height=32, width=32, shard_size=8, max_chunks=6)
    next(build_cache(config, data / "clips", clips=0))
    write_shard(vae, config, folder=data / "clips", shard=0)
    train_tokenizer(sample_captions(300, 0), data / "tokenizer", vocab_size=200)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", team_runs.__file__, str(two), str(data)]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=env, check=True)
    team_runs.run_recipes(one, data)
    for name, mode in (("vae", "shard"), ("magi", "replicate"), ("magi-adamw", "shard")):
        _compare(one / name, two / name, TOLERANCE[mode])

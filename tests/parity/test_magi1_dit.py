"""The MAGI-1 transformer and its sampling loops against outputs of the official code.

`magi1_dit/` is a part of the full goldens. Two models are not stored whole: `A_fp8` is `A` updated
by `models/A_fp8_layers.safetensors`; of the 24B-like `B` only the places where it differs from `A`
in kind are kept (SwiGLU, a 16-channel latent fed twice, rescaled input and output).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel.evaluation.parity.case import CaseResult
from onereel.evaluation.parity.magi1_dit import run
from onereel.models.magi_dit.model import Magi1Transformer3DModel
from onereel.models.magi_dit.official import OfficialModelConfig, transformer_kwargs
from onereel.models.magi_dit.presets import DIT_PRESETS
from onereel.models.magi_dit.weights import official_to_ours, ours_to_official

GOLDENS = Path(__file__).parent / "magi1_dit"
INDEX = json.loads((GOLDENS / "index.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The goldens with the float8 model put together."""
    path = tmp_path_factory.mktemp("goldens") / "magi1_dit"
    shutil.copytree(GOLDENS, path)
    models = path / "models"
    state = load_file(models / "A.safetensors") | load_file(models / "A_fp8_layers.safetensors")
    save_file(state, path / INDEX["models"]["A_fp8"]["file"])
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> list[CaseResult]:
    return list(run(folder))


@pytest.mark.parametrize("case", [case["id"] for case in INDEX["cases"]])
def test_case_equals_the_official_code(results: list[CaseResult], case: str) -> None:
    own = [r for r in results if r.name == case or r.name.startswith(f"{case}.")]
    assert own
    assert [r for r in own if not r.passed] == []


def test_every_part_of_the_goldens_was_compared(results: list[CaseResult]) -> None:
    expected = {
        "rope": 4, "schedule": 26, "stages": 11, "cfg_lookup": 2, "kv_range": 9, "embedders": 5,
        "forward": 4, "fp8_linear": 4, "sampler": 16,
    }  # fmt: skip
    kinds = {case["id"]: case["kind"] for case in INDEX["cases"]}
    counts = Counter(kinds[result.name.split(".")[0]] for result in results)
    assert counts == expected


def test_wrong_goldens_fail(folder: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    case_files = ("t2v_A_onechunk_cfg3_8", "fwd_A_single", "rope_A_6x3x5")
    index = json.loads((wrong / "index.json").read_text())
    index["cases"] = [case for case in index["cases"] if case["id"] in case_files]
    (wrong / "index.json").write_text(json.dumps(index))
    changes = {"t2v_A_onechunk_cfg3_8": "chunk_0", "fwd_A_single": "call1.velocity"}
    for case, name in changes.items():
        tensors = load_file(wrong / f"{case}.safetensors")
        tensors[name] += 0.02
        save_file(tensors, wrong / f"{case}.safetensors")
    failed = {r.name for r in run(wrong) if not r.passed}
    assert failed == {"t2v_A_onechunk_cfg3_8.chunk_0", "fwd_A_single.call1"}


@pytest.fixture(scope="module")
def parts() -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in load_file(GOLDENS / "fwd_B_parts.safetensors").items()}


@pytest.fixture(scope="module")
def large(parts: dict[str, torch.Tensor]) -> Magi1Transformer3DModel:
    """The 24B-like model; what is not stored keeps its random start."""
    config = OfficialModelConfig(**INDEX["models"]["B"]["model_config"])
    model = Magi1Transformer3DModel(**transformer_kwargs(config, distill=False, fp8=False))
    full = {"num_kv_heads": config.num_query_groups, "head_dim": config.kv_channels}
    official = ours_to_official(model.state_dict(), **full, gated=True)
    for name in official.keys() & parts.keys():
        official[name] = official[name].clone()
        official[name][: parts[name].shape[0]] = parts[name]
    model.load_state_dict(official_to_ours(official, **full, gated=True))
    return model.eval()


def _close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_half_channel_input_and_output(
    large: Magi1Transformer3DModel, parts: dict[str, torch.Tensor]
) -> None:
    seen: list[torch.Tensor] = []
    hook = large.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    text = torch.zeros(1, 1, 1, large.config.cross_attention_dim)
    large(parts["x"], torch.tensor([[0.02]]), text)
    hook.remove()
    rows = 64  # the stored rows of the patch embedding
    _close(seen[0][0, :, :rows], parts["x_tokens"][:, 0, :rows])
    grid = (1, parts["x"].shape[3] // 2, parts["x"].shape[4] // 2)
    _close(large._unpatchify(parts["layer1.out"].transpose(0, 1), grid), parts["velocity"])


@torch.no_grad()
def test_swiglu_after_a_gated_sandwich_norm(
    large: Magi1Transformer3DModel, parts: dict[str, torch.Tensor]
) -> None:
    block = large.blocks[0]
    gate = parts["layer0.ada_out_before_softcap"].tanh().chunk(2, dim=-1)[0]  # [B, R, D]
    residual = parts["x_tokens"].transpose(0, 1)
    update = parts["layer0.proj_out"].transpose(0, 1)
    hidden = block.gated_residual(update, gate, norm=block.norm2, residual=residual)
    out = block.ffn(block.norm3(hidden, torch.float32))
    rows = parts["layer0.mlp_out"].shape[-1]
    _close(out[0, :, :rows], parts["layer0.mlp_out"][:, 0])


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [
        ("4.5B_base", 4_459_898_128, 898),
        ("4.5B_distill", 4_459_898_128, 898),
        ("4.5B_distill_quant", 4_460_979_760, 1410),
        ("24B_base", 23_899_281_936, 1262),
        ("24B_distill", 23_899_281_936, 1262),
        ("24B_distill_quant", 23_902_014_382, 1998),
    ],
)
def test_full_sizes_have_the_official_counts(preset: str, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        model = Magi1Transformer3DModel(**DIT_PRESETS[preset])
    config = model.config
    layout = {
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.attention_head_dim,
        "gated": config.gated_linear_unit,
    }
    ours = model.state_dict()
    official = ours_to_official(ours, **layout)
    assert len(official) == tensors
    assert sum(tensor.numel() for tensor in official.values()) == parameters
    back = official_to_ours(official, **layout)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}

"""The Magic 1-For-1 transformer: key maps, inputs, attention without masks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from onereel.core.errors import CheckpointError, ConfigError, ShapeError
from onereel.models.magic_dit.model import (
    MagicCondition,
    image_prior,
    predict_velocity,
    text_lengths,
    use_trimmed_text,
)
from onereel.models.magic_dit.presets import MAGIC_DIT_PRESETS, config_from_official
from onereel.models.magic_dit.weights import (
    build_transformer,
    is_official,
    official_to_ours,
    ours_to_official,
    strip_wrapper,
    widen_input,
)

DIM, HEADS = 32, 2
OFFICIAL = {
    "hidden_size": DIM,
    "heads_num": HEADS,
    "mm_double_blocks_depth": 2,
    "mm_single_blocks_depth": 2,
    "rope_dim_list": (4, 6, 6),
    "text_states_dim": 12,
    "text_states_dim_2": 8,
}
CONFIG = config_from_official(OFFICIAL)
State = dict[str, torch.Tensor]


def random_model(**changes: Any) -> HunyuanVideoTransformer3DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HunyuanVideoTransformer3DModel(**{**CONFIG, **changes})
        for parameter in model.parameters():  # modulations begin as zeros elsewhere
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def plain() -> HunyuanVideoTransformer3DModel:
    """diffusers' model as it comes."""
    return random_model()


@pytest.fixture(scope="module")
def ours(plain: HunyuanVideoTransformer3DModel) -> HunyuanVideoTransformer3DModel:
    return build_transformer(plain.state_dict(), CONFIG)


def inputs(lengths: list[int], *, tokens: int = 7) -> dict[str, torch.Tensor]:
    """Arguments of a call; hidden text is not zero."""
    generator = torch.Generator().manual_seed(1)
    batch = len(lengths)
    draw = {
        "hidden_states": (batch, 33, 2, 4, 4),
        "encoder_hidden_states": (batch, tokens, 12),
        "pooled_projections": (batch, 8),
    }
    values = {name: torch.randn(shape, generator=generator) for name, shape in draw.items()}
    mask = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    return values | {
        "timestep": torch.linspace(937.5, 100, batch),
        "encoder_attention_mask": mask.long(),
    }


# --- key maps ---------------------------------------------------------------------------------


def test_both_layouts_hold_the_same(plain: HunyuanVideoTransformer3DModel) -> None:
    state = plain.state_dict()
    official = ours_to_official(state)
    assert is_official(official) and not is_official(state)
    assert len(official) < len(state)
    back = official_to_ours(official, dim=DIM)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_fused_rows_and_the_swapped_modulation(plain: HunyuanVideoTransformer3DModel) -> None:
    state = plain.state_dict()
    official = ours_to_official(state)
    linear1 = official["single_blocks.1.linear1.weight"]
    assert linear1.shape == (3 * DIM + 4 * DIM, DIM)
    for place, name in enumerate(("attn.to_q", "attn.to_k", "attn.to_v")):
        rows = linear1[place * DIM : (place + 1) * DIM]
        assert torch.equal(rows, state[f"single_transformer_blocks.1.{name}.weight"])
    shift = official["final_layer.adaLN_modulation.1.bias"][:DIM]
    assert torch.equal(shift, state["norm_out.linear.bias"][DIM:])  # diffusers: scale, shift


def test_the_full_size_has_the_official_counts() -> None:
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(**MAGIC_DIT_PRESETS["magic141"])
    official = ours_to_official(model.state_dict())
    assert len(official) == 852
    assert sum(tensor.numel() for tensor in official.values()) == 12_810_991_680
    assert official["img_in.proj.weight"].shape == (3072, 33, 1, 2, 2)


@pytest.mark.parametrize("wrapper", ["", "model.", "module.model."])
@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_every_layout_builds_the_same_model(
    ours: HunyuanVideoTransformer3DModel, layout: str, wrapper: str
) -> None:
    state: State = ours.state_dict()
    if layout == "official":
        state = ours_to_official(state)
    model = build_transformer({wrapper + name: tensor for name, tensor in state.items()}, CONFIG)
    assert not model.training
    for name, tensor in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_converted_weights_can_be_saved(
    ours: HunyuanVideoTransformer3DModel, tmp_path: Path
) -> None:
    """Parts of a fused matrix share their memory, which safetensors must take."""
    model = build_transformer(ours_to_official(ours.state_dict()), CONFIG)
    model.save_pretrained(tmp_path)
    loaded = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_wrapper_is_stripped_from_all_names_or_none() -> None:
    tensor = torch.zeros(1)
    prefix = "hydit_unimodel.guidance_model.feedforward_model."
    assert strip_wrapper({f"{prefix}img_in.proj.bias": tensor}) == {"img_in.proj.bias": tensor}
    mixed = {"model.a": tensor, "b": tensor}
    assert strip_wrapper(mixed) == mixed


def _without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: _without(s, "proj_out.bias"), r"1 missing \(proj_out.bias\)"),
        (lambda s: s | {"proj_out.gain": torch.zeros(1)}, r"1 unexpected \(proj_out.gain\)"),
        (lambda s: s | {"proj_out.bias": torch.zeros(3)}, "of wrong shape"),
        (lambda s: ours_to_official(s) | {"face_in.bias": torch.zeros(3)}, "face_in.bias"),
        (lambda s: ours_to_official(_without(s, "proj_out.bias")), "1 missing"),
    ],
)
def test_what_does_not_fit_is_refused(
    plain: HunyuanVideoTransformer3DModel, change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_transformer(change(plain.state_dict()), CONFIG)


def test_half_of_a_fused_matrix_is_refused(plain: HunyuanVideoTransformer3DModel) -> None:
    state = _without(plain.state_dict(), "single_transformer_blocks.0.proj_mlp.weight")
    with pytest.raises(CheckpointError, match="proj_mlp.weight"):
        ours_to_official(state)
    with pytest.raises(CheckpointError, match="no place"):
        ours_to_official({"rope.freqs": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="rows"):
        official_to_ours({"double_blocks.0.img_attn_qkv.weight": torch.zeros(90, DIM)}, dim=DIM)


def test_widened_text_to_video_weights_ignore_the_picture() -> None:
    narrow = random_model(in_channels=16, guidance_embeds=True, image_condition_type=None)
    for state in (narrow.state_dict(), ours_to_official(narrow.state_dict())):
        wide = build_transformer(widen_input(state), CONFIG)
        call = inputs([5])
        with torch.no_grad():
            first = wide(**call).sample
            call["hidden_states"][:, 16:] += 1
            assert torch.equal(wide(**call).sample, first)
            call["hidden_states"][:, :16] += 1
            assert not torch.equal(wide(**call).sample, first)


def test_widening_by_draws_keeps_the_statistics(plain: HunyuanVideoTransformer3DModel) -> None:
    state = {"img_in.proj.weight": torch.randn(256, 16, 1, 2, 2) * 0.1 + 0.3}
    wide = widen_input(state, init="norm", generator=torch.Generator().manual_seed(0))
    new = wide["img_in.proj.weight"][:, 16:]
    assert torch.equal(wide["img_in.proj.weight"][:, :16], state["img_in.proj.weight"])
    assert new.mean().item() == pytest.approx(0.3, abs=0.01)
    assert new.std().item() == pytest.approx(0.1, abs=0.01)
    with pytest.raises(CheckpointError, match="at most 8"):
        widen_input(state, in_channels=8)
    with pytest.raises(ConfigError, match="zero or norm"):
        widen_input(state, init="ones")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 64}, "hidden_size"),
        ({"mlp_act_type": "relu"}, "gelu_tanh"),
        ({"rope_dim_list": (4, 6, 8)}, "rope_dim_list"),
        ({"patch_size": (1, 2, 4)}, "patch_size"),
    ],
)
def test_configs_without_counterpart_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_official({**OFFICIAL, **change})


# --- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[4], [7], [4, 4], [3, 6]])
@torch.no_grad()
def test_trimmed_text_changes_nothing(
    plain: HunyuanVideoTransformer3DModel,
    ours: HunyuanVideoTransformer3DModel,
    lengths: list[int],
) -> None:
    call = inputs(lengths)
    torch.testing.assert_close(ours(**call).sample, plain(**call).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_text_is_never_seen(ours: HunyuanVideoTransformer3DModel) -> None:
    call = inputs([3])
    first = ours(**call).sample
    call["encoder_hidden_states"][:, 3:] = float("nan")
    assert torch.equal(ours(**call).sample, first)


@pytest.mark.parametrize(("lengths", "masked"), [([4], False), ([4, 4], False), ([3, 6], True)])
@torch.no_grad()
def test_a_mask_is_given_only_where_texts_differ(
    ours: HunyuanVideoTransformer3DModel,
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    masked: bool,
) -> None:
    from diffusers.models.transformers import transformer_hunyuan_video as library

    masks = []
    attend = library.dispatch_attention_fn

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(kwargs["attn_mask"])
        return attend(*args, **kwargs)

    monkeypatch.setattr(library, "dispatch_attention_fn", watched)
    ours(**inputs(lengths))
    assert len(masks) == CONFIG["num_layers"] + CONFIG["num_single_layers"]
    assert {mask is not None for mask in masks} == {masked}


@torch.no_grad()
def test_positional_arguments_and_copies(ours: HunyuanVideoTransformer3DModel) -> None:
    even, uneven = inputs([5]), inputs([3, 6])
    want = ours(**uneven).sample
    ours(**even)
    twin = copy.deepcopy(ours)
    order = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    got = twin(*(uneven[name] for name in (*order, "pooled_projections"))).sample
    assert torch.equal(got, want)


def test_a_second_call_changes_nothing(plain: HunyuanVideoTransformer3DModel) -> None:
    model = build_transformer(plain.state_dict(), CONFIG)
    use_trimmed_text(model)
    assert len(model._forward_pre_hooks) == 1


def test_recomputed_blocks_keep_their_mask(plain: HunyuanVideoTransformer3DModel) -> None:
    """Checkpointed blocks run again in the backward pass, here after a call with other texts."""
    gradients = []
    for interrupted in (False, True):
        model = build_transformer(plain.state_dict(), CONFIG).train()
        model.enable_gradient_checkpointing()
        loss = model(**inputs([3, 6])).sample.square().mean()
        if interrupted:
            with torch.no_grad():
                model(**inputs([5]))
        loss.backward()
        gradients.append(model.x_embedder.proj.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("mask", [[[1, 0, 1]], [[0, 1, 1]], [[0, 0, 0]]])
def test_masks_with_holes_are_refused(mask: list[list[int]]) -> None:
    with pytest.raises(ShapeError, match="ones, then zeros"):
        text_lengths(torch.tensor(mask))
    assert text_lengths(torch.tensor([[1, 1, 0], [1, 0, 0]])) == [2, 1]


# --- inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [1, 2, 3])
def test_the_prior_is_the_reference_then_zeros(given: int) -> None:
    reference = torch.randn(2, 16, given, 4, 4)
    prior = image_prior(reference, 3)
    assert prior.shape == (2, 17, 3, 4, 4)
    assert torch.equal(prior[:, :16, :given], reference)
    assert prior[:, :, given:].count_nonzero() == 0
    assert torch.equal(prior[:, 16, :given], torch.ones(2, given, 4, 4))


@pytest.mark.parametrize("given", [0, 4])
def test_a_prior_of_other_lengths_is_refused(given: int) -> None:
    with pytest.raises(ShapeError, match="1 to 3"):
        image_prior(torch.zeros(1, 16, given, 4, 4), 3)


@torch.no_grad()
def test_the_velocity_is_the_transformers(ours: HunyuanVideoTransformer3DModel) -> None:
    call = inputs([4])
    x, prior = call["hidden_states"].split((16, 17), dim=1)
    told = MagicCondition(
        call["encoder_hidden_states"], call["encoder_attention_mask"], call["pooled_projections"]
    )
    got = predict_velocity(ours, x, sigma=0.9375, condition=told, prior=prior)
    assert torch.equal(got, ours(**call).sample)
    pair = predict_velocity(ours, torch.cat((x, x)), sigma=0.9375, condition=told, prior=prior)
    torch.testing.assert_close(pair, torch.cat((got, got)), atol=1e-5, rtol=1e-5)
    with pytest.raises(ShapeError, match="image prior"):
        predict_velocity(ours, x[:, :, :1], sigma=1.0, condition=told, prior=prior)
    with pytest.raises(ShapeError, match="1 or 3 rows"):
        two = MagicCondition(
            *(t.expand(2, *t.shape[1:]) for t in (told.text, told.mask, told.pooled))
        )
        predict_velocity(ours, x.expand(3, -1, -1, -1, -1), sigma=1.0, condition=two, prior=prior)

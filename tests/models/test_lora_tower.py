"""Low-rank adapters inside image towers: where they are, what they add, and what they share."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.errors import ConfigError
from fedsim.models.clip import Clip, load_clip
from fedsim.models.lora_tower import SplitAttention, lora_tower
from fedsim.params import Params
from tests.models.towers import resnet


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


def pixels(clip: Clip, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(*shape, 3, clip.image_size, clip.image_size, generator=rng)


def drawn(tower: nn.Module, *leading: int, scale: float = 0.1) -> Params:
    rng = torch.Generator().manual_seed(1)
    return {
        name: scale * torch.randn(*leading, *p.shape, generator=rng)
        for name, p in tower.named_parameters()
        if "lora_" in name
    }


def product(adapters: Params, layer: str) -> Tensor:
    a, b = (adapters[f"{layer}.lora_{x}.default.weight"] for x in "AB")
    return (b.flatten(1) @ a.flatten(1)).view(len(b), *a.shape[1:])


def test_attention_of_four_layers_is_torchs_own():
    with torch.random.fork_rng(devices=[]):
        fused = nn.MultiheadAttention(16, 4, batch_first=True).eval()
        nn.init.normal_(fused.in_proj_bias)
        nn.init.normal_(fused.out_proj.bias)
        x = torch.randn(3, 5, 16)
    split = SplitAttention(fused)
    causal = torch.full((5, 5), float("-inf")).triu(1)
    for mask in (None, causal):
        expected, _ = fused(x, x, x, need_weights=False, attn_mask=mask)
        found, weights = split(x, x, x, need_weights=False, attn_mask=mask)
        torch.testing.assert_close(found, expected)
        assert weights is None
    assert split.k_proj.weight.data_ptr() == fused.in_proj_weight[16:].data_ptr()
    assert not any(p.requires_grad for p in split.parameters())


def test_all_linear_layers_of_a_transformer_are_adapted(clip: Clip):
    tower = lora_tower(clip, 4, 8.0, None)
    adapters = drawn(tower)
    layers = {name.split(".lora_")[0] for name in adapters}
    each = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    assert layers == {f"transformer.resblocks.{i}.{name}" for i in range(3) for name in each}
    a = adapters["transformer.resblocks.0.mlp.c_fc.lora_A.default.weight"]
    b = adapters["transformer.resblocks.0.mlp.c_fc.lora_B.default.weight"]
    assert (a.shape, b.shape) == ((4, 64), (128, 4))


def test_convolutions_are_adapted_where_no_linear_layer_is_called(tmp_path: Path):
    """ResNets attend at their end with weights of layers that they never call."""
    clip = resnet(tmp_path)
    layers = {name.split(".lora_")[0] for name in drawn(lora_tower(clip, 2, 2.0, None))}
    convolutions = {n for n, m in clip.visual.named_modules() if isinstance(m, nn.Conv2d)}
    assert layers == convolutions
    with pytest.raises(ConfigError, match="no Linear or Conv2d layer 'q_proj' is called"):
        lora_tower(clip, 2, 2.0, ["q_proj"])


def test_a_tower_without_products_is_clips(clip: Clip, tmp_path: Path):
    for each in (clip, resnet(tmp_path)):
        tower, x = lora_tower(each, 4, 8.0, None), pixels(each, 5)
        nothing = {name: value * (".lora_A." in name) for name, value in drawn(tower).items()}
        with torch.no_grad():
            found = functional_call(tower, nothing, (x,))
            torch.testing.assert_close(found, each.visual(x), rtol=1e-5, atol=1e-6)


def test_products_are_added_to_the_weights(clip: Clip):
    """Against the plain tower with `W + alpha / rank B A` put into it by hand."""
    tower, x = lora_tower(clip, 4, 8.0, None), pixels(clip, 5)
    adapters = drawn(tower)
    weights = {name: p.clone() for name, p in clip.visual.named_parameters()}
    for i in range(3):
        block = f"transformer.resblocks.{i}"
        qkv = [product(adapters, f"{block}.attn.{x}_proj") for x in "qkv"]
        weights[f"{block}.attn.in_proj_weight"] += 2.0 * torch.cat(qkv)
        for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
            weights[f"{block}.{name}.weight"] += 2.0 * product(adapters, f"{block}.{name}")
    with torch.no_grad():
        found = functional_call(tower, adapters, (x,))
        expected = functional_call(clip.visual, weights, (x,))
        assert (expected - clip.visual(x)).abs().amax() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_products_of_convolutions_are_kernels(tmp_path: Path):
    clip = resnet(tmp_path)
    tower, x = lora_tower(clip, 2, 6.0, None), pixels(clip, 4)
    adapters = drawn(tower)
    weights = {name: p.clone() for name, p in clip.visual.named_parameters()}
    for layer in {name.split(".lora_")[0] for name in adapters}:
        weights[f"{layer}.weight"] += 3.0 * product(adapters, layer)
    with torch.no_grad():
        found = functional_call(tower, adapters, (x,))
        expected = functional_call(clip.visual, weights, (x,))
        assert (expected - clip.visual(x)).abs().amax() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["transformer", "resnet"])
def test_a_client_axis_is_a_loop_over_clients(kind: str, clip: Clip, tmp_path: Path):
    each = clip if kind == "transformer" else resnet(tmp_path)
    tower, x = lora_tower(each, 2, 2.0, None), pixels(each, 3, 4)
    stacked = drawn(tower, 3)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # "no batching rule" would be a silent loop
        found = vmap(lambda own, x: functional_call(tower, own, (x,)))(stacked, x)
    for c in range(3):
        own = {name: value[c] for name, value in stacked.items()}
        with torch.no_grad():
            alone = functional_call(tower, own, (x[c],))
        torch.testing.assert_close(found[c], alone, rtol=1e-4, atol=1e-4)


def test_weights_are_shared_and_left_alone(clip: Clip):
    before = {name: p.clone() for name, p in clip.visual.named_parameters()}
    state = torch.random.get_rng_state()
    tower, x = lora_tower(clip, 4, 8.0, None), pixels(clip, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    own = [p for name, p in tower.named_parameters() if "lora_" not in name]
    held = {p.untyped_storage().data_ptr() for p in clip.visual.parameters()}
    assert {p.untyped_storage().data_ptr() for p in own} == held
    vmap(lambda a: functional_call(tower, a, (x,)))(drawn(tower, 2))
    assert all(torch.equal(p, before[name]) for name, p in clip.visual.named_parameters())
    assert {type(m) for m in clip.visual.modules()}.isdisjoint({SplitAttention})
    assert not any("lora" in name for name, _ in clip.visual.named_modules())
    assert not tower.training
    assert not any(m.training for m in tower.modules())


def test_targets_are_ends_of_names(clip: Clip):
    def layers(*targets: str) -> set[str]:
        return {n.split(".lora_")[0] for n in drawn(lora_tower(clip, 2, 2.0, targets))}

    assert layers("q_proj", "v_proj") == {
        f"transformer.resblocks.{i}.attn.{x}_proj" for i in range(3) for x in "qv"
    }
    assert layers("transformer.resblocks.1.mlp.c_fc") == {"transformer.resblocks.1.mlp.c_fc"}
    assert layers("conv1") == {"conv1"}
    assert layers("mlp.c_fc", "c_fc") == {f"transformer.resblocks.{i}.mlp.c_fc" for i in range(3)}
    with pytest.raises(ConfigError, match="'q_prj'.* 'tiny-clip'; did you mean 'q_proj'"):
        layers("q_prj")
    with pytest.raises(ConfigError, match="no Linear or Conv2d layer 'ln_1'"):
        layers("ln_1")
    with pytest.raises(ConfigError, match="no Linear or Conv2d layer 'proj'"):  # not `c_proj`
        layers("proj")

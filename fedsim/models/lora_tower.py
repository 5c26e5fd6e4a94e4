"""Low-rank adapters (LoRA, Hu et al., 2021) inside CLIP's image tower, through `peft`.

    y = W x + (alpha / rank) B A x          W frozen; A (rank, in), B (out, rank), B starts as 0

peft adapts layers that are called: `Linear` and `Conv2d`. torch's `MultiheadAttention` only lends
its weights to one fused function; peft's own wrapper for it merges the product into the frozen
weight and takes it out again at every call, which neither vmap nor a weight shared by all clients
allows. So attention is first rewritten as the four layers it consists of, with the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.errors import ConfigError, did_you_mean
from fedsim.models.clip import Clip


def lora_tower(clip: Clip, rank: int, alpha: float, targets: Sequence[str] | None) -> nn.Module:
    """The image tower with adapters; its frozen weights are those of `clip`, not copies.

    Args:
        clip: The model with the tower. It stays unchanged.
        rank: Rank of the product B A, > 0.
        alpha: The product is scaled by `alpha / rank`.
        targets: Layers by name or by the end of it, such as `q_proj` or `mlp.c_fc`. By default all
            `Linear` layers, or all ungrouped `Conv2d` where the tower calls no `Linear`.

    Returns:
        A module whose parameters `*.lora_A.*` and `*.lora_B.*` are the adapters. The caller sets
        the start of A.

    Raises:
        ConfigError: A target is no layer of the tower, or none that can be adapted.
    """
    from peft import LoraConfig, inject_adapter_in_model

    visual = clip.visual
    # Copies the modules around the tensors, and not the tensors.
    shared: dict[int, object] = {id(t): t for t in (*visual.parameters(), *visual.buffers())}
    tower = copy.deepcopy(visual, shared)
    _split_attention(tower)
    called = _called_layers(tower, clip)
    chosen = _default(called) if targets is None else _matching(called, targets, clip)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):  # peft draws A from the global generator
        inject_adapter_in_model(config, tower)
    return tower.eval().requires_grad_(False)


class SplitAttention(nn.Module):
    """torch's `MultiheadAttention` as four `Linear` layers, which share its weights."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = fused.num_heads
        weights = fused.in_proj_weight.chunk(3)
        biases = [None] * 3 if fused.in_proj_bias is None else fused.in_proj_bias.chunk(3)
        parts = [_linear(w, b) for w, b in zip(weights, biases, strict=True)]
        self.q_proj, self.k_proj, self.v_proj = parts
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attention over `(batch, length, width)`; weights are never returned."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(-2, -3).flatten(-2)), None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=bias is not None, device="meta")  # draws nothing
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _split_attention(tower: nn.Module) -> None:
    for module in list(tower.modules()):
        for name, child in module.named_children():
            if (
                isinstance(child, nn.MultiheadAttention)
                and child._qkv_same_embed_dim
                and child.batch_first
                and child.bias_k is None
                and not child.add_zero_attn
            ):
                setattr(module, name, SplitAttention(child))


def _called_layers(tower: nn.Module, clip: Clip) -> dict[str, nn.Module]:
    """The layers that an image passes through, by name. An adapter elsewhere would be idle."""
    layers = {n: m for n, m in tower.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    seen: set[nn.Module] = set()
    handles = [
        layer.register_forward_hook(lambda module, *_: seen.add(module))
        for layer in layers.values()
    ]
    try:
        with torch.no_grad():
            weight = next(tower.parameters())
            tower(weight.new_zeros(1, 3, clip.image_size, clip.image_size))
    finally:
        for handle in handles:
            handle.remove()
    return {name: layer for name, layer in layers.items() if layer in seen}


def _default(called: dict[str, nn.Module]) -> list[str]:
    linear = [name for name, layer in called.items() if isinstance(layer, nn.Linear)]
    plain = [n for n, layer in called.items() if getattr(layer, "groups", 1) == 1]
    return linear or plain


def _matching(called: dict[str, nn.Module], targets: Sequence[str], clip: Clip) -> list[str]:
    chosen: dict[str, None] = {}
    for target in targets:
        found = [name for name in called if name == target or name.endswith(f".{target}")]
        if not found:
            known = {name.rsplit(".", 1)[-1] for name in called} | {*called}
            raise ConfigError(
                f"no Linear or Conv2d layer {target!r} is called in the image tower of CLIP "
                f"{clip.spec!r}; {did_you_mean(target, known)}"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)

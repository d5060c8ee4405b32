"""Start a model from a trained one of another size."""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM


def grow(model: LlamaForCausalLM, shallow: LlamaForCausalLM) -> None:
    """Fill ``model`` with ``shallow``'s weights so that it computes the same function with more layers.

    The added layers are spread evenly; each copies the layer before it with the two output projections at zero, so it
    adds nothing until it is trained (block expansion, LLaMA Pro, arXiv:2401.02415). Raises ValueError where the models
    differ in more than their depth or ``model`` is the shallower one.
    """
    deep, few = int(model.config.num_hidden_layers), int(shallow.config.num_hidden_layers)
    source, own = shallow.state_dict(), model.state_dict()
    if deep < few:
        raise ValueError(f"a target of {deep} layers cannot grow from one of {few}; give it at least as many layers")
    kept = {round((index + 1) * deep / few) - 1 for index in range(few)}
    weights, origin = dict[str, torch.Tensor](), -1
    for layer in range(deep):
        origin += layer in kept
        for name in [name for name in own if name.startswith(f"model.layers.{layer}.")]:
            part = name.removeprefix(f"model.layers.{layer}.")
            weights[name] = source[f"model.layers.{max(origin, 0)}.{part}"].clone()
            if layer not in kept and part in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                weights[name].zero_()
    weights |= {name: source[name].clone() for name in own if name not in weights}
    different = [name for name in own if own[name].shape != weights[name].shape]
    if different:
        raise ValueError(f"the shallow target's {different[0]} has another shape; only the number of layers may differ")
    model.load_state_dict(weights)


def copy_agreeing(source: LlamaForCausalLM, model: LlamaForCausalLM) -> None:
    """Copy every tensor of ``source`` that ``model`` has by the same name and shape: embedding, norms, first layers."""
    found, own = source.state_dict(), model.state_dict()
    shared = {name: found[name].clone() for name in own if name in found and own[name].shape == found[name].shape}
    model.load_state_dict(shared, strict=False)


def shrink(model: LlamaForCausalLM, large: LlamaForCausalLM) -> None:
    """Fill ``model`` with ``large``'s weights at fewer key heads and a narrower feed-forward part, to be trained on.

    The key and value heads that a query group will share are averaged (GQA uptraining, arXiv:2305.13245); of the
    feed-forward channels those with the largest product of norms stay (as in Minitron's pruning, arXiv:2407.14679).
    Raises ValueError where the models differ otherwise.
    """
    heads, kept = int(model.config.num_key_value_heads or 1), int(model.config.intermediate_size)
    source, own = large.state_dict(), model.state_dict()
    weights = {name: tensor.clone() for name, tensor in source.items()}
    for layer in range(int(large.config.num_hidden_layers)):
        prefix = f"model.layers.{layer}."
        gate, up, down = (f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        importance = source[gate].norm(dim=1) * source[up].norm(dim=1) * source[down].norm(dim=0)
        channels = importance.topk(min(kept, len(importance))).indices.sort().values
        weights |= {gate: source[gate][channels], up: source[up][channels], down: source[down][:, channels]}
        for part in ("k", "v"):
            name = f"{prefix}self_attn.{part}_proj.weight"
            groups = source[name].unflatten(0, (heads, -1, int(large.config.head_dim or 1)))
            weights[name] = groups.mean(1).flatten(0, 1)
    different = sorted(
        name
        for name in own.keys() | weights
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )
    if different:
        raise ValueError(f"{different[0]} differs by more than key heads and feed-forward width; make the rest equal")
    model.load_state_dict(weights)

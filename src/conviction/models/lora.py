"""LoRA: PEFT's adapters and file format, with a forward pass in two multiplications fewer.

PEFT makes, names, saves and loads the adapter; only the layer's arithmetic is
ours (``fused``), put in through PEFT's own dispatch. Hu et al., 2106.09685.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from conviction.core.storage import storage_errors
from conviction.errors import InputError, nearest
from conviction.models.adapter_config import ADAPTER as CONFIG
from conviction.models.adapter_config import WEIGHTS, check_patterns, read_adapter_config

MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Architectures whose fused kernels read the weight of ``out_proj`` past its module; PEFT refuses it there."""
ADAPTER = "default"
PREFIX = "base_model.model."  # PEFT's files name weights as seen from its wrapper


Recipe = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""How a tensor can be made again: a function, and what to give it."""


class _Fused(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ for layers that read the same x, with W, b frozen: sums happen in multiplications.

    Plain autograd makes three tensors of the output's size more for each layer, and
    casts the input when the adapter is fp32 (30-65 % of a forward pass on a CPU).
    An x that brings a recipe is not kept, but made again for its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: float, recipe: Recipe | None, *operands: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases, lora_a, lora_b = _by_kind(operands)
        flat = x.reshape(-1, x.shape[-1])
        a, bs = torch.cat([m.to(x.dtype) for m in lora_a]), [m.to(x.dtype) for m in lora_b]
        low = flat @ a.T
        ys = []
        for weight, bias, b, part in zip(weights, biases, bs, _parts(low, bs, 1), strict=True):
            y = torch.nn.functional.linear(flat, weight, bias).addmm_(part, b.T, alpha=scale)
            ys.append(y.view(*x.shape[:-1], -1))
        make, ingredients = recipe or (None, (flat,))
        ctx.save_for_backward(low, a, *weights, *bs, *ingredients)
        ctx.scale, ctx.dtype, ctx.make = scale, lora_a[0].dtype, make
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        low, a, *rest = ctx.saved_tensors
        n = len(grads)
        weights, bs, ingredients = rest[:n], rest[n : 2 * n], rest[2 * n :]
        dys = [dy.reshape(-1, dy.shape[-1]) for dy in grads]
        down = torch.cat([dy @ b for dy, b in zip(dys, bs, strict=True)], dim=1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dys[0] @ weights[0]
            for dy, weight in zip(dys[1:], weights[1:], strict=True):
                dx.addmm_(dy, weight)
            dx = dx.addmm_(down, a, alpha=ctx.scale).view(*grads[0].shape[:-1], -1)
        x = ctx.make(*ingredients) if ctx.make else ingredients[0]
        da = (down.T @ x.reshape(-1, x.shape[-1])).to(ctx.dtype).mul_(ctx.scale)
        db = [(dy.T @ part).to(ctx.dtype).mul_(ctx.scale) for dy, part in zip(dys, _parts(low, bs, 1), strict=True)]
        return dx, None, None, *(d for pair in zip(_parts(da, bs, 0), db, strict=True) for d in (None, None, *pair))


def _by_kind(operands: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    """(W, b, A, B) of one layer after another, as all W, all b, all A, all B."""
    return tuple(operands[i::4] for i in range(4))


def _parts(joined: Tensor, bs: Sequence[Tensor], dim: int) -> tuple[Tensor, ...]:
    """What belongs to each layer, of a tensor that holds the ranks of all along ``dim``."""
    return torch.split(joined, [b.shape[1] for b in bs], dim=dim)


def fused(x: Tensor, *layers: FusedLinear) -> tuple[Tensor, ...]:
    """Outputs of LoRA layers that read the same x, all plain (``is_plain``) and of one multiplier.

    An x that can cheaply be made again carries a ``recipe``.
    """
    operands = [t for layer in layers for t in layer.operands()]
    out: tuple[Tensor, ...] = _Fused.apply(x, layers[0].scale, getattr(x, "recipe", None), *operands)  # type: ignore[no-untyped-call]
    return out


class FusedLinear(PeftLinear):  # type: ignore[misc]
    """PEFT's LoRA layer; where nothing unusual is asked of it, with fused arithmetic.

    ready  (x, y): the output for this very x is known, since it was computed with that of other layers
    """

    ready: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[…, in] to […, out]."""
        ready = self.ready
        if ready is not None and ready[0] is x:
            return ready[1]
        if kwargs or not self.is_plain(x):
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        return fused(x, self)[0]

    def is_plain(self, x: Tensor) -> bool:
        """Whether this layer is one frozen matrix and one LoRA update, and ``x`` has its dtype."""
        weight = self.base_layer.weight
        return (
            self.active_adapters == [ADAPTER]
            and not (self.disable_adapters or self.merged or self.lora_variant)
            and isinstance(self.lora_dropout[ADAPTER], nn.Identity)
            and self.lora_B[ADAPTER].bias is None
            and not weight.requires_grad
            and x.dtype == weight.dtype
        )

    def operands(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """W, bias, A and B."""
        return (
            self.base_layer.weight,
            self.base_layer.bias,
            self.lora_A[ADAPTER].weight,
            self.lora_B[ADAPTER].weight,
        )

    @property
    def scale(self) -> float:
        """What B·A is multiplied by."""
        return float(self.scaling[ADAPTER])


def can_fuse(x: Tensor, layers: Sequence[Any]) -> bool:
    """Whether ``fused`` may be called."""
    plain = all(isinstance(layer, FusedLinear) and layer.is_plain(x) for layer in layers)
    return plain and len({layer.scale for layer in layers}) == 1


def decoder_layers(module: Any) -> nn.ModuleList:
    """The stack of transformer blocks. Raises InputError for an architecture without one."""
    depth = module.config.get_text_config().num_hidden_layers
    for child in module.base_model.modules():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            return child
    raise InputError(
        f"{type(module).__name__} has no single stack of {depth} layers", hint="leave num_layers out for this model"
    )


def first_trained_layer(module: Any, num_layers: int | None) -> int:
    """Index of the first layer that is trained. Raises InputError if the model has fewer than ``num_layers``."""
    depth = len(decoder_layers(module)) if num_layers is not None else 0
    if num_layers is not None and num_layers > depth:
        raise InputError(f"num_layers is {num_layers}, the model has {depth} layers", hint=f"give at most {depth}")
    return depth - num_layers if num_layers is not None else 0


def add_lora(
    module: Any,
    *,
    rank: int,
    scale: float,
    dropout: float = 0.0,
    target_modules: tuple[str, ...] | None = None,
    num_layers: int | None = None,
    seed: int = 0,
) -> None:
    """Inject a new adapter (A random by ``seed``, B zero) whose parameters, fp32, are all that is trained.

    scale           what B·A is multiplied by
    target_modules  last names of linear layers; None: all in the body
    num_layers      only the last N layers; None: all

    Raises InputError for a target module or a number of layers that the model does not have, and for a rank above
    that of its largest matrix: such an adapter holds no more, and takes the memory.
    """
    largest = max(min(p.shape) for p in module.base_model.parameters() if p.dim() == 2)
    if rank > largest:
        raise InputError(
            f"rank is {rank}, and no matrix of {type(module).__name__} has a rank above {largest}",
            hint=f"give at most {largest}; 4 to 64 is usual",
        )
    first = first_trained_layer(module, num_layers)
    depth = module.config.get_text_config().num_hidden_layers
    config = LoraConfig(
        r=rank,
        # saved as alpha, so that any reader of PEFT's format multiplies by the same
        lora_alpha=scale * rank,
        lora_dropout=dropout,
        target_modules=list(_targets(module, target_modules)),
        layers_to_transform=list(range(first, depth)) if first else None,
        layers_pattern=_layers_name(module) if first else None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=_is_transposed(module),
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        _inject(module, config)
    finally:
        torch.set_rng_state(state)


def save_lora(module: Any, folder: Path, *, base: str) -> None:
    """Write the adapter in PEFT's format. ``base`` is what the model is loaded by."""
    config = copy.copy(module.peft_config[ADAPTER])
    config.base_model_name_or_path, config.inference_mode = base, True
    state = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    with storage_errors(f"writing the adapter to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{PREFIX}{name}": t.detach().cpu().contiguous() for name, t in state.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(folder))


def load_lora(module: Any, folder: Path) -> None:
    """Inject the adapter that lies in ``folder``.

    Raises ModelError, naming file and field, for a configuration that must not be followed; ValueError for an
    adapter that does not fit the model.
    """
    check_patterns(read_adapter_config(folder), [name for name, _ in module.named_modules()], folder / CONFIG)
    config = LoraConfig.from_pretrained(str(folder))
    state = {n.removeprefix(PREFIX): t for n, t in load_file(folder / WEIGHTS).items()}
    if damaged := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{len(damaged)} of the adapter's tensors hold numbers that are not finite ({damaged[0]})")
    _inject(module, config)
    result = set_peft_model_state_dict(module, state, adapter_name=ADAPTER)
    wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if "lora_" in key)]
    if wrong:
        names = ", ".join(sorted(wrong)[:3])
        raise ValueError(f"the adapter's weights do not fit {type(module).__name__}: {len(wrong)} tensors ({names})")


HALF = (torch.bfloat16, torch.float16)


def shared_copy(module: Any) -> Any:
    """The same module tree over the same storage, frozen; tied weights stay tied."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in module.parameters()}
    memo |= {id(b): b for b in module.buffers()}
    return copy.deepcopy(module, memo)


def merged_copy(module: Any) -> Any:
    """A copy without the adapter whose weights hold its update; what the adapter does not touch is shared.

    Weights of 16 bits become fp32, and nothing is shared: most of a small update is less than their last digit, and
    would be rounded away (a reference adapter of ``obesity`` lost 0.11 nats per token of one answer in bf16).
    An update of one of two tied matrices unties them. Raises InputError for an adapter that no weights can hold.
    """
    twin = shared_copy(module)
    if any(p.dtype in HALF for p in twin.parameters()):
        twin.float()
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, LoraLayer | ModulesToSaveWrapper | TrainableTokensWrapper):
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, _merged(name, layer))
    head = twin.get_output_embeddings()
    if head is not None and head.weight is not twin.get_input_embeddings().weight:
        twin.config.tie_word_embeddings = twin.config.get_text_config().tie_word_embeddings = False
    del twin.peft_config
    return twin


def _merged(name: str, layer: Any) -> nn.Module:
    """What an adapter's layer stands for, as one layer with weights of its own."""
    if isinstance(layer, ModulesToSaveWrapper):
        saved: nn.Module = layer.modules_to_save[ADAPTER]
        return saved
    if isinstance(layer, TrainableTokensWrapper):
        layer = layer.token_adapter
    base: nn.Module = layer.get_base_layer()
    if getattr(layer, "lora_bias", {}).get(ADAPTER) and getattr(base, "bias", None) is None:
        raise InputError(
            f"the adapter cannot be merged, as this needs: it has a lora_bias for {name}, where the model has none",
            hint="train the adapter without lora_bias; as it is, it can be probed",
        )
    for leaf, parameter in list(base.named_parameters(recurse=False)):  # PEFT adds in place
        setattr(base, leaf, nn.Parameter(parameter.data.clone(), requires_grad=False))
    layer.merge()  # whatever the kind of adapter: a foreign one may be DoRA
    return base


def adapter_layers(module: nn.Module) -> dict[str, Any]:
    """PEFT's LoRA layers by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, PeftLinear)}


def lora_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and tensors of the adapter."""
    return ((name, p) for name, p in module.named_parameters() if "lora_" in name)


def _inject(module: Any, config: LoraConfig) -> None:
    config._register_custom_module({nn.Linear: FusedLinear})  # noqa: SLF001  PEFT's documented way in
    with warnings.catch_warnings():  # PEFT's own patterns for experts, which are no linear layers here
        warnings.filterwarnings("ignore", message=r"The following \w+_pattern keys did not match")
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for _, parameter in lora_parameters(module):
        parameter.data = parameter.data.float()


def _targets(module: Any, wanted: tuple[str, ...] | None) -> list[str]:
    """Last names of the linear layers inside the body, or the wanted ones among them.

    A class of its own that derives from them computes something else (PhiMoE's router gives three tensors).
    """
    body = module.base_model
    names = {n.rpartition(".")[2] for n, m in body.named_modules() if type(m) in {nn.Linear, Conv1D}}
    if module.config.model_type in MAMBA:
        names -= {"out_proj"}
    for name in wanted or ():
        if name not in names:
            raise InputError(
                f"{type(module).__name__} has no linear layer '{name}'",
                hint=f"{nearest(name, names)}use some of: {', '.join(sorted(names))}",
            )
    return sorted(wanted or names)


def out_of_reach(module: Any) -> tuple[float, list[str]]:
    """Share of the blocks' weights that LoRA on linear layers does not reach, and the names of their parameters.

    A mixture's experts are one tensor of three dimensions; a router, a convolution and what a state
    space keeps are no linear layers either.
    """
    covered = total = 0
    targets = set(_targets(module, None))
    names: dict[str, None] = {}
    for layer in decoder_layers(module):
        linear = {f"{name}.weight" for name, _ in layer.named_modules() if name.rpartition(".")[2] in targets}
        for name, parameter in layer.named_parameters():
            if parameter.dim() < 2:
                continue
            total += parameter.numel()
            if name in linear:
                covered += parameter.numel()
            else:
                names[name] = None
    return 1 - covered / max(1, total), list(names)


def _layers_name(module: Any) -> str:
    """What the stack of layers is called: 'layers', or 'h' in GPT-2."""
    stack = decoder_layers(module)
    path = next(str(name) for name, child in module.named_modules() if child is stack)
    return path.rpartition(".")[2]


def _is_transposed(module: Any) -> bool:
    return any(isinstance(m, Conv1D) for m in module.modules())

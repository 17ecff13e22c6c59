# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model classes with random weights, in the sizes that engine.py serves.

Tensor parallelism is our own: each rank builds the class with its share of heads and of the inner width,
and the outputs of what is split by its input are summed over the ranks. FP8 is our own too: weights are
stored as float8_e4m3 with a scale for each row, and turned into bfloat16 where they are used.
"""

import contextlib
import pathlib

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

FP8_MAX = 448.0
SETS = ("dense-bf16", "dense-fp8", "moe-bf16", "moe-fp8", "tiny-bf16", "tinymoe-fp8", "tinymoe-bf16")


def config_of(name, tp=1):
    """About 8 billion parameters, a mixture of experts with about 5, or small ones for a trial."""
    kind = name.split("-")[0]
    heads = {"num_attention_heads": 32 // tp, "num_key_value_heads": 8 // tp, "head_dim": 128}
    few = {"num_attention_heads": 16 // tp, "num_key_value_heads": 4 // tp, "head_dim": 128}
    tiny = {"num_attention_heads": 4 // tp, "num_key_value_heads": 2 // tp, "head_dim": 16}
    if kind == "dense":
        sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128256, **heads}
        return LlamaConfig(intermediate_size=14336 // tp, **sizes)
    if kind == "tiny":
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, **tiny}
        return LlamaConfig(intermediate_size=128 // tp, **sizes)
    experts = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 768 // tp}
    sizes = {"hidden_size": 2048, "num_hidden_layers": 16, "vocab_size": 128256, **few}
    if kind == "tinymoe":
        experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32 // tp}
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, **tiny}
    return Qwen3MoeConfig(decoder_sparse_step=1, norm_topk_prob=True, **experts, **sizes)


def build(name, tp=1, device="cuda"):
    """The class with random weights: what a target overwrites, and what a checkpoint is made of."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(name, tp), dtype=torch.bfloat16)
    if name.endswith("fp8"):
        store_as_fp8(model)
    return finish(model, tp)


def finish(model, tp):
    if hasattr(model.config, "num_experts"):
        # Of the implementations this is the one whose sums have one order.
        model.set_experts_implementation("eager")
    for name, part in model.named_modules() if tp > 1 else ():
        if name.endswith("o_proj") or is_inner_end(name, part):
            part.register_forward_hook(lambda _part, _given, out: all_reduced(out))
    return model.eval().requires_grad_(False)


def is_inner_end(name, part):
    return name.endswith("mlp.down_proj") or type(part).__name__.endswith("SparseMoeBlock")


def all_reduced(out):
    dist.all_reduce(out)
    return out


def model_bytes(name, tp):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name, tp), dtype=torch.bfloat16)
    return sum(part.nbytes for part in model.parameters())


def store_as_fp8(model):
    """Every linear layer but the last, and the experts; norms, embeddings and routers stay as they are."""
    for part in list(model.modules()):
        is_linear = isinstance(part, torch.nn.Linear) and part is not model.lm_head
        if is_linear or type(part).__name__.endswith("Experts"):
            names = [name for name, given in part.named_parameters(recurse=False) if given.dim() > 1]
            store_part(part, names)


def store_part(part, names):
    for name in names:
        weight = getattr(part, name).detach()
        scale = weight.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
        stored = (weight.float() / scale).to(torch.float8_e4m3fn)
        delattr(part, name)
        part.register_parameter(f"{name}_fp8", torch.nn.Parameter(stored, requires_grad=False))
        part.register_parameter(f"{name}_scale", torch.nn.Parameter(scale, requires_grad=False))
    read = {name: property(lambda self, name=name: dequantized(self, name)) for name in names}
    part.__class__ = type(f"Fp8{type(part).__name__}", (type(part),), read)


def dequantized(part, name):
    scale = getattr(part, f"{name}_scale").to(torch.bfloat16)
    return getattr(part, f"{name}_fp8").to(torch.bfloat16) * scale


def save(name, folder, device="cuda"):
    """A checkpoint as a hub has it; one with FP8 in a file of our own names."""
    torch.manual_seed(1)
    model = build(name, device=device)
    folder = pathlib.Path(folder)
    if name.endswith("bf16"):
        model.save_pretrained(folder, max_shard_size="4GB")
        return
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors")


def load(name, folder, rank, tp, device="cuda"):
    """From disk: the library's own loader where it has one for this, else each rank's slices."""
    if name.endswith("bf16") and tp == 1:
        place = {"": device} if device == "cpu" else {"": torch.cuda.current_device()}
        found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=place)
        return finish(found, tp)
    model = build(name, tp, device)
    with contextlib.ExitStack() as stack:
        files = {}
        for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            files.update(dict.fromkeys(file.keys(), file))
        for key, into in model.named_parameters():
            fill(into, key, files, rank)
    return model


def fill(into, key, files, rank):
    if key in files:
        into.data.copy_(share(files[key].get_slice(key), into.shape, rank, "gate_up" in key))
        return
    # A hub keeps experts apart, the class keeps them together.
    prefix, _, kind = key.rpartition(".")
    names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    for index, one in enumerate(into.data):
        for name, to in zip(names, one.chunk(len(names))):
            full = f"{prefix}.{index}.{name}.weight"
            to.copy_(share(files[full].get_slice(full), to.shape, rank, False))


def share(source, shape, rank, is_pair):
    """A rank's part of what the file has whole, where the two differ. A pair is two, one behind the other."""
    full = source.get_shape()
    split = [at for at, (has, wants) in enumerate(zip(full, shape)) if has != wants]
    if not split:
        return source[:]
    (at,) = split
    if not is_pair:
        return source[before(at) + (slice(rank * shape[at], (rank + 1) * shape[at]),)]
    half = shape[at] // 2
    starts = [rank * half, full[at] // 2 + rank * half]
    return torch.cat([source[before(at) + (slice(one, one + half),)] for one in starts], at)


def before(at):
    return (slice(None),) * at

# SPDX-License-Identifier: Apache-2.0
"""The classes of vLLM and SGLang that the loaders touch, a few lines each, on the fake GPU.

A checkpoint is a salt: the full loader writes its values, the dummy loader others, and both then run the
post-load processing, which derives a tensor that is no parameter.
"""

import contextlib
import enum
import hashlib
import sys
import types

import relight.torch
from stubs import Module, Tensor, stub_torch


class Group:
    def __init__(self, rank_in_group=0, world_size=1):
        self.rank_in_group, self.world_size = rank_in_group, world_size


class Layer(Module):
    plain = ("absorbed",)


class Network(Module):
    """One weight, and what processing derives from it."""

    def __init__(self, gpu, registered=None):
        self._gpu, self._base = gpu, gpu.allocate(8192)
        self.layer = Layer()
        self.layer.weight = Tensor(self._base, (32, 32))
        if registered is not None:
            if "layer" in registered:
                raise ValueError("a layer of that name is registered already")
            registered["layer"] = self.layer

    def fill(self, salt):
        self._gpu.write(self._base, hashlib.shake_128(salt.encode()).digest(2048))

    def process(self):
        """As an engine absorbs a weight: another tensor, from the first one's values."""
        derived = hashlib.shake_128(self._gpu.read(self._base, 2048)).digest(1024)
        self._gpu.write(self._base + 4096, derived)
        self.layer.absorbed = Tensor(self._base + 4096, (16, 32))

    def values(self):
        return self._gpu.read(self._base, 2048) + self._gpu.read(self._base + 4096, 1024)


def values_of(gpu, salt):
    network = Network(gpu)
    network.fill(salt)
    network.process()
    return network.values()


class Config:
    """Whatever attributes a test gives it."""

    def __init__(self, **given):
        vars(self).update(given)


def vllm_configs(**over):
    """(vllm_config, model_config) of one served model on one GPU."""
    model = Config(model="org/model", revision=None, hf_config=Config(_commit_hash="c0ffee"))
    parallel = Config(
        data_parallel_size=1, data_parallel_rank=0, enable_expert_parallel=False, enable_eplb=False
    )
    compilation = Config(static_forward_context={}, traced_files=set())
    config = Config(
        model_config=model,
        parallel_config=parallel,
        compilation_config=compilation,
        speculative_config=None,
    )
    vars(config).update(over)
    return config, model


class VllmStub:
    """vLLM's registry of loaders, its two loaders, and its groups."""

    def __init__(self, gpu, salt):
        self.gpu, self.salt = gpu, salt
        self.built = []  # load formats, in order
        self.extra = []  # the extra configuration that each saw
        self.dummy_fails = False
        self.groups = {name: Group() for name in ("tp", "pp", "ep")}
        self.registry = {}

    def modules(self):
        stub = self

        class BaseModelLoader:
            def __init__(self, load_config):
                self.load_config = load_config

        class Loader(BaseModelLoader):
            def load_model(self, vllm_config, model_config, prefix=""):
                return stub.build(self.load_config, vllm_config)

        def register_model_loader(load_format):
            def keep(cls):
                assert issubclass(cls, BaseModelLoader)
                stub.registry[load_format] = cls
                return cls

            return keep

        def get_model_loader(load_config):
            return stub.registry.get(load_config.load_format, Loader)(load_config)

        package = "vllm.model_executor.model_loader"
        return {
            "vllm": module("vllm"),
            "vllm.model_executor": module("vllm.model_executor"),
            package: module(
                package,
                register_model_loader=register_model_loader,
                get_model_loader=get_model_loader,
            ),
            f"{package}.base_loader": module(f"{package}.base_loader", BaseModelLoader=BaseModelLoader),
            "vllm.distributed": module("vllm.distributed", parallel_state=self),
        }

    def build(self, load_config, vllm_config):
        self.built.append(load_config.load_format)
        self.extra.append(load_config.model_loader_extra_config)
        network = Network(self.gpu, vllm_config.compilation_config.static_forward_context)
        if load_config.load_format == "dummy":
            if self.dummy_fails:
                raise RuntimeError("no dummy for this one")
            network.fill("dummy")
        else:
            network.fill(self.salt)
        network.process()
        return network

    def get_tp_group(self):
        return self.groups["tp"]

    def get_pp_group(self):
        return self.groups["pp"]

    def get_ep_group(self):
        return self.groups["ep"]


class LoadFormat(str, enum.Enum):
    AUTO = "auto"
    DUMMY = "dummy"
    REMOTE_INSTANCE = "remote_instance"
    GGUF = "gguf"


class SglangStub:
    """SGLang's choice of a loader, its hook registry, and its ranks."""

    def __init__(self, gpu, salt):
        self.gpu, self.salt = gpu, salt
        self.built = []
        self.hooks = {}

    def modules(self):
        class HookType(enum.Enum):
            AROUND = "around"

        registry = types.SimpleNamespace(
            register=lambda target, hook, kind: self.hooks.__setitem__(target, (hook, kind.value))
        )
        hooks = "sglang.srt.plugins.hook_registry"
        ranks = {
            "get_tensor_model_parallel_rank": lambda: 1,
            "get_tensor_model_parallel_world_size": lambda: 2,
            "get_moe_expert_parallel_rank": lambda: 0,
            "get_moe_expert_parallel_world_size": lambda: 1,
            "get_pp_group": Group,
        }
        return {
            "sglang": module("sglang"),
            "sglang.srt": module("sglang.srt", distributed=types.SimpleNamespace(**ranks)),
            "sglang.srt.plugins": module("sglang.srt.plugins"),
            hooks: module(hooks, HookRegistry=registry, HookType=HookType),
        }

    def get_model_loader(self, load_config, model_config=None):
        stub = self

        class Loader:
            note = "of the original"

            def load_model(self, *, model_config, device_config):
                stub.built.append(load_config.load_format.value)
                network = Network(stub.gpu)
                network.fill("dummy" if load_config.load_format is LoadFormat.DUMMY else stub.salt)
                network.process()
                return network

        return Loader()


def module(name, **members):
    made = types.ModuleType(name)
    vars(made).update(members)
    return made


@contextlib.contextmanager
def stubbed(gpu, *stubs):
    """Puts the stubs, and the fake GPU, where the loaders find torch, libcuda and the engine."""
    names = {name: part for stub in stubs for name, part in stub.modules().items()}
    driver = relight.torch.Driver
    relight.torch.Driver = lambda: gpu
    sys.modules.update(names)
    try:
        with stub_torch():
            yield
    finally:
        relight.torch.Driver = driver
        for name in names:
            del sys.modules[name]

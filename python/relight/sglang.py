# SPDX-License-Identifier: Apache-2.0
"""SGLang: the entry point of `sglang.srt.plugins`, which stands around SGLang's choice of a loader.

Under `relight run --weights` the formats that read a checkpoint, and `remote_instance`, take their weights
from a live replica first. The structure comes from SGLang's own dummy loader, which also runs its
post-load processing; the fallback is the loader that SGLang would have taken.
"""

import copy

from . import engine
from .torch import Place

_TARGET = "sglang.srt.model_loader.loader.get_model_loader"
_FORMATS = ("auto", "safetensors", "pt", "mistral", "remote_instance")


def register():
    """Called by SGLang in each of its processes."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_TARGET, choose_loader, HookType.AROUND)


def choose_loader(original, load_config, *args, **given):
    """The loader for a configuration: SGLang's own, or ours around it."""
    if not engine.is_wanted() or _format(load_config) not in _FORMATS:
        return original(load_config, *args, **given)
    return _Loader(load_config, lambda config: original(config, *args, **given))


class _Loader:
    """Has what SGLang asks of a loader; what is not about weights is the original's."""

    def __init__(self, load_config, choose):
        self.load_config = load_config
        self._choose = choose
        self._own = None

    def __getattr__(self, name):
        return getattr(self._full_loader(), name)

    def download_model(self, model_config):
        self._full_loader().download_model(model_config)

    def load_model(self, *, model_config, device_config):
        given = {"model_config": model_config, "device_config": device_config}
        commit = getattr(getattr(model_config, "hf_config", None), "_commit_hash", None)
        model, revision = engine.identity_of(
            model_config.model_path, getattr(model_config, "revision", None), commit
        )
        recipe = engine.Recipe(
            model=model,
            revision=revision,
            place=_place(model_config),
            empty=lambda: self._choose(self._with_format("dummy")).load_model(**given),
            full=lambda: self._full_loader().load_model(**given),
            sources=engine.named_sources(
                getattr(self.load_config, "remote_instance_weight_loader_seed_instance_ip", None),
                getattr(
                    self.load_config, "remote_instance_weight_loader_seed_instance_service_port", None
                ),
            ),
        )
        return engine.load(recipe)

    def _full_loader(self):
        if self._own is None:
            is_remote = _format(self.load_config) == "remote_instance"
            self._own = self._choose(self._with_format("auto") if is_remote else self.load_config)
        return self._own

    def _with_format(self, name):
        config = copy.copy(self.load_config)
        kind = type(config.load_format)
        config.load_format = name if kind is str else kind(name)
        config.model_loader_extra_config = {}
        return config


def _format(load_config):
    """A member of SGLang's enumeration, or its text."""
    return getattr(load_config.load_format, "value", load_config.load_format)


def _place(model_config):
    from sglang.srt import distributed

    expert = (
        distributed.get_moe_expert_parallel_rank(),
        distributed.get_moe_expert_parallel_world_size(),
    )
    pipeline = distributed.get_pp_group()
    return Place(
        role="draft" if getattr(model_config, "is_draft_model", False) else "target",
        tensor=(
            distributed.get_tensor_model_parallel_rank(),
            distributed.get_tensor_model_parallel_world_size(),
        ),
        pipeline=(pipeline.rank_in_group, pipeline.world_size),
        expert=expert,
    )

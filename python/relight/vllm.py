# SPDX-License-Identifier: Apache-2.0
"""vLLM: the entry point of `vllm.general_plugins`, which makes `--load-format relight` known.

The structure comes from vLLM's own dummy loader, which also runs its post-load processing; the fallback is
its default loader. Both are asked for through vLLM's registry, so that their versions are vLLM's.
"""

import copy
import functools
import logging

from . import engine
from .torch import Place

_log = logging.getLogger("relight")
FORMAT = "relight"


def register():
    """Called by vLLM in each of its processes."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    register_model_loader(FORMAT)(_loader_class(BaseModelLoader))


@functools.cache
def _loader_class(base):
    class RelightModelLoader(base):
        """Weights from a live replica, else as `--load-format auto` has them."""

        def download_model(self, model_config):
            self._delegate("auto").download_model(model_config)

        def load_weights(self, model, model_config):
            self._delegate("auto").load_weights(model, model_config)

        def load_model(self, vllm_config, model_config, **given):
            def build(load_format):
                loader = self._delegate(load_format)
                return loader.load_model(
                    vllm_config=vllm_config, model_config=model_config, **given
                )

            if not engine.is_wanted():
                _log.warning("relight: weights start cold: no agent, start it with relight run --weights")
                return build("auto")
            model, revision = _identity(model_config)
            recipe = engine.Recipe(
                model=model,
                revision=revision,
                place=_place(vllm_config, model_config),
                empty=lambda: build("dummy"),
                full=lambda: build("auto"),
                reset=_registrations(vllm_config),
                sources=engine.named_sources(),
                # A balancer that moves experts about would change them under their readers.
                offers=not getattr(vllm_config.parallel_config, "enable_eplb", False),
            )
            return engine.load(recipe)

        def _delegate(self, load_format):
            from vllm.model_executor.model_loader import get_model_loader

            config = copy.copy(self.load_config)
            config.load_format = load_format
            if load_format == "dummy":
                config.model_loader_extra_config = {}
            return get_model_loader(config)

    return RelightModelLoader


def _identity(model_config):
    commit = getattr(getattr(model_config, "hf_config", None), "_commit_hash", None)
    return engine.identity_of(model_config.model, model_config.revision, commit)


def _place(vllm_config, model_config):
    """Ranks as vLLM's groups have them. A draft is what is loaded beside the served model."""
    from vllm.distributed import parallel_state

    parallel = vllm_config.parallel_config
    expert = (0, 1)
    if getattr(parallel, "enable_expert_parallel", False):
        expert = _pair(parallel_state.get_ep_group())
    return Place(
        role="draft" if _is_draft(vllm_config, model_config) else "target",
        tensor=_pair(parallel_state.get_tp_group()),
        pipeline=_pair(parallel_state.get_pp_group()),
        expert=expert,
        data=(getattr(parallel, "data_parallel_rank", 0), max(1, parallel.data_parallel_size)),
    )


def _pair(group):
    return group.rank_in_group, group.world_size


def _is_draft(vllm_config, model_config):
    speculative = getattr(vllm_config, "speculative_config", None)
    drafted = getattr(speculative, "draft_model_config", None)
    is_other = model_config is not vllm_config.model_config
    is_named = drafted is not None and model_config is drafted
    return is_other or is_named or getattr(model_config, "runner_type", None) == "draft"


def _registrations(vllm_config):
    """What layers register outside the module while it is built, to be put back as it was before.

    vLLM refuses a second layer of the same name, and would go on using what the first one left. Other
    modules of this process, such as the served model beside its draft, stay registered.
    """
    holders = [vars(vllm_config.compilation_config)]
    try:
        from vllm.model_executor.layers import rotary_embedding

        holders.append({"rope": rotary_embedding._ROPE_DICT})
    except (ImportError, AttributeError):  # Another version keeps it elsewhere, or not at all.
        pass
    kept = [
        (value, copy.copy(value))
        for holder in holders
        for value in holder.values()
        if isinstance(value, (dict, list, set))
    ]

    def reset():
        for value, before in kept:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)

    return reset

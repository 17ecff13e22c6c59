# SPDX-License-Identifier: Apache-2.0
"""How an engine's loader takes its weights from a live replica; vllm.py and sglang.py are its recipes.

Structure first, with dummy weights and the engine's own post-load processing; then the live tensors are
overwritten in place. Whatever fails, the engine loads as it always did, into a fresh structure, and then
offers what it has. Nothing here raises but what the engine's own loading raises.
"""

import dataclasses
import gc
import hashlib
import logging
import os

from . import torch as relight_torch
from .agent import SOCKET_VARIABLE, Agent, AgentError

_log = logging.getLogger("relight")
# Held for the life of the process: closing one withdraws its tensors.
_publications = []


@dataclasses.dataclass
class Recipe:
    """One engine's ways to make one module."""

    model: str
    revision: str
    place: "relight_torch.Place"
    empty: "object"  # () -> module: structure, dummy weights, post-load processing
    full: "object"  # () -> module: the engine's own loading
    reset: "object" = lambda: None  # forgets what building the structure left behind elsewhere
    sources: tuple = ()  # agents to ask, besides those that the coordinator knows
    offers: bool = True  # whether its tensors keep still, so that others may read them


def is_wanted():
    """Whether this process runs under an agent that hands over weights."""
    return bool(os.environ.get(SOCKET_VARIABLE))


def load(recipe):
    """The module, with a live replica's weights or the engine's own."""
    code = _look(recipe)
    module = _from_replica(recipe) if code is None else None
    if module is None:
        module = recipe.full()
        if recipe.offers:
            _publish(recipe, module)
        relight_torch.await_caches()
    return module


def _look(recipe):
    """None when a live replica may have it: building a structure for nothing costs seconds."""
    asked = {
        "model": recipe.model,
        "coordinate": recipe.place.wire(),
        "sources": list(recipe.sources),
    }
    try:
        with Agent.connect() as agent:
            agent.call("look", asked)
        return None
    except AgentError as error:
        _log.warning("relight: weights start cold, %s: %s", error.code, error)
        return error.code


def _from_replica(recipe):
    """None when it did not work; then nothing of the attempt is left."""
    try:
        module = recipe.empty()
        given = {"model": recipe.model, "revision": recipe.revision, "place": recipe.place}
        start = relight_torch.load_into(module, sources=recipe.sources, **given)
    except Exception as error:  # The one catch-all: a recipe that fails must not stop the engine.
        _log.warning("relight: weights start cold, plugin_bug: %s", error, exc_info=True)
        module, start = None, None
    if start is not None and start.warm:
        _keep(recipe, start.publication)
        return module
    # Whether or not it was written to: it has been processed already, and cannot be loaded again.
    del module
    recipe.reset()
    gc.collect()
    _empty_cache()
    return None


def _publish(recipe, module):
    try:
        publication = relight_torch.publish(
            module, model=recipe.model, revision=recipe.revision, place=recipe.place
        )
        _keep(recipe, publication)
    except AgentError as error:
        _log.warning("relight: weights are not offered, %s: %s", error.code, error)
    except Exception as error:  # As above.
        _log.warning("relight: weights are not offered, plugin_bug: %s", error, exc_info=True)


def _keep(recipe, publication):
    if recipe.offers:
        _publications.append(publication)
    else:
        publication.close()


def _empty_cache():
    import torch

    torch.cuda.empty_cache()


def named_sources(ip=None, port=None):
    """Agents that the seeds' variables, or the engine's own flags, name directly."""
    ip = ip or os.environ.get("REMOTE_INSTANCE_IP")
    port = port or os.environ.get("REMOTE_INSTANCE_SERVER_PORT")
    return (f"http://{ip}:{port}",) if ip and port else ()


def identity_of(path_or_name, revision, commit=None):
    """(model, revision) so that equal pairs mean equal values.

    A commit of the hub says which values; so does nothing about a directory but its files, whose names,
    sizes and times two replicas of a machine share when they read the same ones.
    """
    if os.path.isdir(path_or_name):
        path = os.path.realpath(path_or_name)
        return path, f"files-{_files_digest(path)}"
    return path_or_name, commit or revision or ""


def _files_digest(path):
    lines = []
    for entry in sorted(os.scandir(path), key=lambda one: one.name):
        if entry.is_file():
            facts = entry.stat()
            lines.append(f"{entry.name} {facts.st_size} {facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

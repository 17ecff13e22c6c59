# SPDX-License-Identifier: Apache-2.0
"""The loaders with stubs of their engines and of the agent: what they build, in which order, and say."""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import tomllib
import unittest
from unittest import mock

import relight.engine
import relight.sglang
import relight.vllm
from engine_stubs import (
    Config,
    Group,
    LoadFormat,
    SglangStub,
    VllmStub,
    stubbed,
    values_of,
    vllm_configs,
)
from stubs import FakeGpu

OFFERED = {"key": "k", "generation": 1, "content": "c"}
NONE = {"error": {"code": "no_source", "message": "none serves it", "details": {}}}


class OpAgent:
    """Answers each call by its operation, on as many connections as come, and remembers the calls."""

    def __init__(self, directory, **answers):
        self.path = os.path.join(directory, "agent.sock")
        self.calls = []
        self._answers = {"look": {}, "warm": {}, "publish": OFFERED, **answers}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def of(self, operation):
        return [args for name, args in self.calls if name == operation]

    def close(self):
        self._listener.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            self._answer(connection)

    def _answer(self, connection):
        while True:
            header = connection.recv(8, socket.MSG_WAITALL)
            if len(header) < 8:
                return
            body_bytes, _ = struct.unpack("<II", header)
            call = json.loads(connection.recv(body_bytes, socket.MSG_WAITALL))
            self.calls.append((call["op"], call["args"]))
            answer = self._answers[call["op"]]
            whole = answer if "error" in answer else {"value": answer}
            reply = json.dumps(whole).encode()
            connection.sendall(struct.pack("<II", len(reply), 0) + reply)


class EngineTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.directory = self._folder.name
        self.gpu = FakeGpu(self.directory)
        self.environment = {"REMOTE_INSTANCE_IP": "", "REMOTE_INSTANCE_SERVER_PORT": ""}

    def tearDown(self):
        while relight.engine._publications:
            relight.engine._publications.pop().close()
        self._folder.cleanup()

    def agent(self, **answers):
        agent = OpAgent(self.directory, **answers)
        self.addCleanup(agent.close)
        self.environment["RELIGHT_AGENT_SOCKET"] = agent.path
        return agent

    def under(self, *stubs):
        patched = mock.patch.dict(os.environ, self.environment)
        patched.start()
        self.addCleanup(patched.stop)
        context = stubbed(self.gpu, *stubs)
        context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)


class VllmTest(EngineTest):
    def load(self, stub, config, model, **given):
        relight.vllm.register()
        loader_class = stub.registry["relight"]
        extra = given.pop("extra", {})
        loader = loader_class(Config(load_format="relight", model_loader_extra_config=extra))
        return loader.load_model(vllm_config=config, model_config=model, **given)

    def test_importing_the_loaders_imports_no_engine(self):
        script = (
            "import relight.vllm, relight.sglang, sys;"
            "sys.exit(any(n in sys.modules for n in ('torch', 'vllm', 'sglang')))"
        )
        self.assertEqual(subprocess.run([sys.executable, "-c", script]).returncode, 0)

    def test_a_live_replica_fills_what_the_dummy_loader_built_and_processed(self):
        agent = self.agent(load={**OFFERED, "sources": ["x"]})
        stub = VllmStub(self.gpu, "checkpoint")
        self.under(stub)
        network = self.load(stub, *vllm_configs(), prefix="")
        self.assertEqual(stub.built, ["dummy"])
        self.assertEqual(network.values(), values_of(self.gpu, "dummy"))  # The stub agent wrote none.
        (asked,) = agent.of("load")
        names = [tensor["name"] for tensor in asked["layout"]["tensors"]]
        self.assertEqual(names, ["layer.weight", "layer.absorbed"])
        self.assertEqual(asked["layout"]["model"], "org/model")
        self.assertEqual(asked["layout"]["revision"], "c0ffee")
        self.assertEqual(len(relight.engine._publications), 1)
        self.assertEqual(agent.of("publish"), [])

    def test_where_nobody_serves_the_model_no_structure_is_built_for_nothing(self):
        agent = self.agent(look=NONE)
        stub = VllmStub(self.gpu, "checkpoint")
        self.under(stub)
        network = self.load(stub, *vllm_configs(), extra={"num_threads": 4})
        self.assertEqual((stub.built, stub.extra), (["auto"], [{"num_threads": 4}]))
        self.assertEqual(network.values(), values_of(self.gpu, "checkpoint"))
        self.assertEqual(len(agent.of("publish")), 1)
        self.assertEqual(len(agent.of("warm")), 1)

    def test_a_failed_load_leaves_nothing_registered_and_starts_anew(self):
        exhausted = {"code": "sources_exhausted", "message": "gone", "details": {"mutated": True}}
        agent = self.agent(load={"error": exhausted})
        stub = VllmStub(self.gpu, "checkpoint")
        self.under(stub)
        config, model = vllm_configs()
        config.compilation_config.static_forward_context["another"] = "stays"
        network = self.load(stub, config, model, extra={"num_threads": 4})
        self.assertEqual(stub.built, ["dummy", "auto"])
        self.assertEqual(stub.extra, [{}, {"num_threads": 4}])
        registered = config.compilation_config.static_forward_context
        self.assertEqual(registered, {"another": "stays", "layer": network.layer})
        self.assertEqual(network.values(), values_of(self.gpu, "checkpoint"))
        self.assertEqual(len(agent.of("publish")), 1)

    def test_a_structure_that_cannot_be_built_with_dummies_is_a_cold_start(self):
        self.agent()
        stub = VllmStub(self.gpu, "checkpoint")
        stub.dummy_fails = True
        self.under(stub)
        network = self.load(stub, *vllm_configs())
        self.assertEqual(stub.built, ["dummy", "auto"])
        self.assertEqual(network.values(), values_of(self.gpu, "checkpoint"))

    def test_without_an_agent_the_default_loader_loads(self):
        stub = VllmStub(self.gpu, "checkpoint")
        self.environment["RELIGHT_AGENT_SOCKET"] = ""
        self.under(stub)
        self.load(stub, *vllm_configs())
        self.assertEqual(stub.built, ["auto"])

    def test_a_publication_that_is_refused_costs_only_the_publication(self):
        refused = {"error": {"code": "conflict", "message": "taken", "details": {}}}
        self.agent(look=NONE, publish=refused)
        stub = VllmStub(self.gpu, "checkpoint")
        self.under(stub)
        network = self.load(stub, *vllm_configs())
        self.assertEqual((stub.built, len(relight.engine._publications)), (["auto"], 0))
        self.assertEqual(network.values(), values_of(self.gpu, "checkpoint"))

    def test_ranks_stages_experts_and_drafts_are_told_apart(self):
        self.agent()
        stub = VllmStub(self.gpu, "checkpoint")
        stub.groups = {"tp": Group(3, 8), "pp": Group(1, 2), "ep": Group(5, 16)}
        self.under(stub)
        config, model = vllm_configs()
        config.parallel_config.enable_expert_parallel = True
        place = relight.vllm._place(config, model)
        self.assertEqual((place.role, place.tensor, place.pipeline), ("target", (3, 8), (1, 2)))
        self.assertEqual(place.expert, (5, 16))
        config.parallel_config.enable_expert_parallel = False
        self.assertEqual(relight.vllm._place(config, model).expert, (0, 1))
        draft = Config(model="org/model")
        self.assertEqual(relight.vllm._place(config, draft).role, "draft")
        config.speculative_config = Config(draft_model_config=model)
        self.assertEqual(relight.vllm._place(config, model).role, "draft")

    def test_experts_that_a_balancer_moves_are_not_offered(self):
        agent = self.agent(look=NONE)
        stub = VllmStub(self.gpu, "checkpoint")
        self.under(stub)
        config, model = vllm_configs()
        config.parallel_config.enable_eplb = True
        self.load(stub, config, model)
        self.assertEqual(agent.of("publish"), [])

    def test_the_seeds_variables_name_a_source(self):
        agent = self.agent(load=OFFERED)
        stub = VllmStub(self.gpu, "checkpoint")
        self.environment["REMOTE_INSTANCE_IP"] = "10.0.0.7"
        self.environment["REMOTE_INSTANCE_SERVER_PORT"] = "30000"
        self.under(stub)
        self.load(stub, *vllm_configs())
        self.assertEqual(agent.of("load")[0]["sources"], ["http://10.0.0.7:30000"])

    def test_a_directory_is_the_same_only_while_its_files_are(self):
        path = os.path.join(self.directory, "model")
        os.mkdir(path)
        shard = os.path.join(path, "model.safetensors")
        with open(shard, "w", encoding="utf-8") as file:
            file.write("values")
        before = relight.engine.identity_of(path, None)
        self.assertEqual(relight.engine.identity_of(f"{path}/.", None), before)
        with open(shard, "w", encoding="utf-8") as file:
            file.write("others")
        os.utime(shard, ns=(1, 1))
        after = relight.engine.identity_of(path, None)
        self.assertEqual(after[0], before[0])
        self.assertNotEqual(after[1], before[1])


class SglangTest(EngineTest):
    def choose(self, stub, load_format, **fields):
        config = Config(load_format=load_format, model_loader_extra_config={}, **fields)
        return relight.sglang.choose_loader(stub.get_model_loader, config, None)

    def load(self, stub, load_format=LoadFormat.AUTO, **fields):
        model = Config(model_path="org/model", revision="main", is_draft_model=False)
        loader = self.choose(stub, load_format, **fields)
        return loader.load_model(model_config=model, device_config=None)

    def test_register_stands_around_the_choice_of_a_loader(self):
        stub = SglangStub(self.gpu, "checkpoint")
        self.under(stub)
        relight.sglang.register()
        hook = stub.hooks["sglang.srt.model_loader.loader.get_model_loader"]
        self.assertEqual(hook, (relight.sglang.choose_loader, "around"))

    def test_a_live_replica_fills_what_the_dummy_loader_built(self):
        agent = self.agent(load=OFFERED)
        stub = SglangStub(self.gpu, "checkpoint")
        self.under(stub)
        self.load(stub)
        self.assertEqual(stub.built, ["dummy"])
        coordinate = agent.of("load")[0]["layout"]["coordinate"]
        self.assertEqual(coordinate["tensor"], {"rank": 1, "size": 2})
        self.assertEqual(coordinate["role"], "target")

    def test_a_remote_instance_is_a_named_source_and_falls_back_to_the_checkpoint(self):
        failed = {"error": {"code": "sources_exhausted", "message": "", "details": {"mutated": False}}}
        agent = self.agent(load=failed)
        stub = SglangStub(self.gpu, "checkpoint")
        self.under(stub)
        network = self.load(
            stub,
            LoadFormat.REMOTE_INSTANCE,
            remote_instance_weight_loader_seed_instance_ip="10.0.0.7",
            remote_instance_weight_loader_seed_instance_service_port=30000,
        )
        self.assertEqual(agent.of("load")[0]["sources"], ["http://10.0.0.7:30000"])
        self.assertEqual(stub.built, ["dummy", "auto"])
        self.assertEqual(network.values(), values_of(self.gpu, "checkpoint"))

    def test_other_formats_and_processes_without_an_agent_get_the_original(self):
        stub = SglangStub(self.gpu, "checkpoint")
        self.agent()
        self.under(stub)
        self.assertEqual(type(self.choose(stub, LoadFormat.GGUF)).__name__, "Loader")
        with mock.patch.dict(os.environ, {"RELIGHT_AGENT_SOCKET": ""}):
            self.assertEqual(type(self.choose(stub, LoadFormat.AUTO)).__name__, "Loader")

    def test_what_is_not_about_weights_is_the_originals(self):
        stub = SglangStub(self.gpu, "checkpoint")
        self.agent()
        self.under(stub)
        self.assertEqual(self.choose(stub, LoadFormat.AUTO).note, "of the original")


class PackageTest(unittest.TestCase):
    def test_the_package_names_both_entry_points_and_needs_nothing(self):
        folder = os.path.join(os.path.dirname(__file__), "..")
        with open(os.path.join(folder, "pyproject.toml"), "rb") as file:
            project = tomllib.load(file)["project"]
        with open(os.path.join(folder, "..", "package.json"), encoding="utf-8") as file:
            self.assertEqual(project["version"], json.load(file)["version"])
        self.assertEqual(project["dependencies"], [])
        for points in project["entry-points"].values():
            module, function = points["relight"].split(":")
            self.assertTrue(callable(getattr(sys.modules[module], function)))


if __name__ == "__main__":
    unittest.main()

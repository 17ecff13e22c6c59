# SPDX-License-Identifier: Apache-2.0
"""The plugin with a stub torch and a stub agent: what it collects, says and survives."""

import array
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

import relight.torch
from relight.agent import Agent, AgentError
from relight.memory import Driver, Handle
from stubs import NAMES, FakeGpu, Model, Tensor, stub_torch


class StubAgent:
    """Answers each call with the next of the given answers; None closes the connection instead."""

    def __init__(self, directory, answers):
        self.path = os.path.join(directory, "agent.sock")
        self.calls = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._answers = list(answers)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        connection, _ = self._listener.accept()
        for answer in self._answers:
            header, descriptors = self._exactly(connection, 8)
            body_bytes, count = struct.unpack("<II", header)
            _, more = self._exactly(connection, -(-count // 250))
            body, _ = self._exactly(connection, body_bytes)
            call = json.loads(body)
            self.calls.append((call, [os.fstat(fd).st_ino for fd in descriptors + more]))
            if answer is None:
                break
            reply = json.dumps(answer).encode()
            connection.sendall(struct.pack("<II", len(reply), 0) + reply)
        connection.close()

    @staticmethod
    def _exactly(connection, count):
        data, descriptors = b"", array.array("i")
        while len(data) < count:
            part, ancillary, _, _ = connection.recvmsg(count - len(data), socket.CMSG_SPACE(1024))
            if not part:
                break
            for _, _, rights in ancillary:
                descriptors.frombytes(rights)
            data += part
        return data, list(descriptors)


class PluginTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.directory = self._folder.name
        self.gpu = FakeGpu(self.directory)

    def tearDown(self):
        self._folder.cleanup()

    def load(self, agent, **over):
        with stub_torch():
            given = {"model": "m", "socket": agent, "driver": self.gpu, **over}
            return relight.torch.load_into(Model(self.gpu), **given)

    def test_importing_the_package_imports_no_torch(self):
        script = "import relight, relight.torch, sys; sys.exit('torch' in sys.modules)"
        self.assertEqual(subprocess.run([sys.executable, "-c", script]).returncode, 0)

    def test_live_tensors_are_parameters_buffers_and_what_was_derived(self):
        with stub_torch():
            found = relight.torch.live_tensors(Model(self.gpu), {"extra": Tensor(0, (0,))})
        self.assertEqual(sorted(found), sorted([*NAMES, "extra"]))
        kinds = {name: kind for name, (kind, _) in found.items()}
        self.assertEqual(kinds["cos"], "buffer")
        self.assertEqual(kinds["embed"], "parameter")
        self.assertEqual(kinds["attention.impl.w_uv"], "derived")

    def test_publish_sends_each_allocation_once_and_the_place_of_each_tensor(self):
        agent = StubAgent(
            self.directory, [{"value": {"key": "k", "generation": 1, "content": "c"}}]
        )
        with stub_torch():
            place = relight.torch.Place(tensor=(1, 8))
            publication = relight.torch.publish(
                Model(self.gpu), model="m", place=place, socket=agent.path, driver=self.gpu
            )
        self.assertEqual((publication.key, publication.generation), ("k", 1))
        call, _ = agent.calls[0]
        layout = call["args"]["layout"]
        self.assertEqual(call["op"], "publish")
        self.assertEqual([one["bytes"] for one in layout["allocations"]], [4096, 8192])
        self.assertEqual(len(call["handles"]), 2)
        self.assertEqual(layout["coordinate"]["tensor"], {"rank": 1, "size": 8})
        self.assertEqual(layout["arch"], 90)
        tensors = {one["name"]: one for one in layout["tensors"]}
        self.assertEqual(tensors["lm_head"]["offsetBytes"], tensors["embed"]["offsetBytes"])
        self.assertEqual(tensors["cos"]["offsetBytes"], 512)
        self.assertEqual(tensors["attention.w_uk_t"]["stride"], [1, 16])
        self.assertEqual(tensors["embed"]["dtype"], "bfloat16")
        publication.close()

    def test_changing_tells_the_agent_before_and_after(self):
        agent = StubAgent(
            self.directory,
            [
                {"value": {"key": "k", "generation": 1, "content": "c"}},
                {"value": {"generation": 2, "readers": 0}},
                {"value": {"generation": 2, "content": "d"}},
            ],
        )
        with stub_torch():
            publication = relight.torch.publish(
                Model(self.gpu), model="m", socket=agent.path, driver=self.gpu
            )
            with publication.changing():
                self.assertEqual(publication.generation, 1)
        self.assertEqual([call["op"] for call, _ in agent.calls], ["publish", "change", "changed"])
        self.assertEqual((publication.generation, publication.content), (2, "d"))

    def test_load_into_without_an_agent_is_a_cold_start_that_wrote_nothing(self):
        start = self.load(os.path.join(self.directory, "nobody.sock"))
        self.assertFalse(start.warm)
        self.assertEqual(start.code, "source_unreachable")

    def test_load_into_passes_on_the_code_and_whether_memory_was_written(self):
        error = {"code": "sources_exhausted", "message": "none", "details": {"mutated": True}}
        start = self.load(StubAgent(self.directory, [{"error": error}]).path)
        self.assertEqual((start.warm, start.code, start.mutated), (False, "sources_exhausted", True))

    def test_an_agent_that_dies_in_the_call_may_have_written(self):
        start = self.load(StubAgent(self.directory, [None]).path)
        self.assertEqual((start.warm, start.code, start.mutated), (False, "source_unreachable", True))

    def test_a_bug_of_ours_is_a_cold_start(self):
        class Broken(FakeGpu):
            def allocation_of(self, first, end):
                raise ZeroDivisionError

        start = self.load("/nowhere", driver=Broken(self.directory))
        self.assertEqual((start.warm, start.code), (False, "plugin_bug"))

    def test_a_parameter_that_is_not_on_a_gpu_is_named(self):
        with stub_torch():
            model = Model(self.gpu)
            model.embed = Tensor(1, (4,), device="cpu")
            with self.assertRaises(AgentError) as caught:
                relight.torch.publish(model, model="m", socket="/nowhere", driver=self.gpu)
        self.assertEqual(caught.exception.code, "device_unsupported")
        self.assertIn('"embed"', caught.exception.message)

    def test_a_buffer_on_the_host_is_not_copied_and_its_values_are_in_its_name(self):
        def name_of(values):
            held = ctypes.create_string_buffer(values, len(values))
            with stub_torch():
                model = Model(self.gpu)
                model.cos = Tensor(ctypes.addressof(held), (4,), "torch.uint8", device="cpu")
                layout, _, _ = relight.torch._describe(
                    relight.torch.live_tensors(model), "m", "", relight.torch.Place(), self.gpu
                )
            (found,) = [one for one in layout["tensors"] if one["name"].startswith("cos")]
            self.assertEqual(found["shape"], [0])
            return found["name"]

        self.assertEqual(name_of(b"1234"), name_of(b"1234"))
        self.assertNotEqual(name_of(b"1234"), name_of(b"1235"))

    def test_the_gpu_is_waited_for_before_anything_is_described(self):
        done = []

        class Watched(FakeGpu):
            def allocation_of(self, first, end):
                done.append("described")
                return super().allocation_of(first, end)

        gpu = Watched(self.directory)
        with stub_torch() as torch:
            torch.cuda.synchronize = lambda: done.append("waited")
            tensors = relight.torch.live_tensors(Model(gpu))
            relight.torch._describe(tensors, "m", "", relight.torch.Place(), gpu)
        self.assertEqual(done[:2], ["waited", "described"])

    def test_tensors_in_lists_and_mappings_are_found(self):
        with stub_torch():
            model = Model(self.gpu)
            model.attention.scales = [Tensor(0, (0,)), 1, Tensor(0, (0,))]
            model.attention.tables = {"a": Tensor(0, (0,)), 3: "text"}
            found = relight.torch.live_tensors(model)
        expected = ["attention.scales.0", "attention.scales.2", "attention.tables.a"]
        self.assertEqual(sorted(set(found) - set(NAMES)), expected)

    def test_descriptors_arrive_in_order_and_are_closed_here(self):
        agent = StubAgent(self.directory, [{"value": 1}])
        files = [os.open(self.directory, os.O_RDONLY) for _ in range(3)]
        inode = os.fstat(files[0]).st_ino
        handle = Handle({"kind": "descriptor", "pieces": [1, 1, 1]}, files)
        with Agent.connect(agent.path) as client:
            client.call("publish", {}, [handle])
        self.assertEqual(agent.calls[0][1], [inode] * 3)
        for descriptor in files:
            with self.assertRaises(OSError):
                os.fstat(descriptor)

    def test_a_machine_without_the_driver_is_device_absent(self):
        try:
            Driver()
        except AgentError as error:
            self.assertEqual(error.code, "device_absent")


if __name__ == "__main__":
    unittest.main()

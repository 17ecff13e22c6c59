# SPDX-License-Identifier: Apache-2.0
"""How ranks meet, without a GPU: windows by descriptor, meetings that wait for both sides."""

import os
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from relight import ep_abi  # noqa: E402
from relight.agent import AgentError  # noqa: E402
from relight.ep_peers import Peers  # noqa: E402


class PeersTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.open = []

    def tearDown(self):
        for peers in self.open:
            peers.close()
        self.directory.cleanup()

    def peers(self, rank, text=b"window"):
        def export():
            read, write = os.pipe()
            os.write(write, text)
            os.close(write)
            return {"bytes": len(text), "incarnation": 40 + rank}, read

        found = Peers(self.directory.name, rank, export)
        self.open.append(found)
        return found

    def test_a_window_travels_as_an_open_file_with_its_size_and_incarnation(self):
        self.peers(0, b"of rank 0")
        descriptor, size, incarnation = self.peers(1).window(0, 5)
        with os.fdopen(descriptor, "rb") as file:
            self.assertEqual(file.read(), b"of rank 0")
        self.assertEqual((size, incarnation), (9, 40))

    def test_no_descriptor_stays_open_after_many_windows(self):
        self.peers(0)
        asking = self.peers(1)
        before = None
        for turn in range(20):
            descriptor, _, _ = asking.window(0, 5)
            os.close(descriptor)
            if turn == 4:
                before = len(os.listdir("/proc/self/fd"))
        # The other side's threads close theirs a moment later: what is asked for is that nothing adds up.
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before + 5)

    def test_a_meeting_waits_for_the_other_side(self):
        one, other = self.peers(0), self.peers(1)
        heard = []
        one.say(1, "first", {"epoch": 7})
        thread = threading.Thread(target=lambda: heard.append(one.hear(1, "first", 5)))
        thread.start()
        thread.join(0.1)
        self.assertEqual(heard, [])
        other.say(0, "first", {"epoch": 3})
        thread.join(5)
        self.assertEqual(heard, [{"epoch": 3}])
        self.assertEqual(other.hear(0, "first", 5), {"epoch": 7})

    def test_what_was_said_at_another_meeting_does_not_count(self):
        one, other = self.peers(0), self.peers(1)
        other.say(0, "old", {"epoch": 1})
        with self.assertRaises(AgentError) as caught:
            one.hear(1, "new", 0.2)
        self.assertEqual(caught.exception.code, "source_unreachable")
        other.say(0, "new", {"epoch": 2})
        self.assertEqual(one.hear(1, "new", 5), {"epoch": 2})

    def test_a_rank_that_is_started_again_takes_its_place(self):
        self.peers(0, b"first life")
        asking = self.peers(1)
        self.peers(0, b"second life")
        descriptor, _, _ = asking.window(0, 5)
        with os.fdopen(descriptor, "rb") as file:
            self.assertEqual(file.read(), b"second life")

    def test_a_window_takes_what_the_layout_says(self):
        config = {"tokens_max": 128, "hidden": 7168, "topk": 8, "ranks_max": 8, "local_experts_max": 32,
                  "parities": 1, "select_rows": 0}
        self.assertEqual(ep_abi.needs(config), (29636608, 34560))


if __name__ == "__main__":
    unittest.main()

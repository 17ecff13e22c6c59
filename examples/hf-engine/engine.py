# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model class with random weights, served with /health and /logits.

    python3 engine.py --make DIR --set dense-bf16
    relight run --weights --model M -- python3 engine.py --set dense-bf16 --checkpoint DIR --port 8300

It loads its weights from a live replica through Relight's agent, else from the checkpoint, and offers
them from then on. GET /health answers 200 once the first token is there, with the seconds of each phase;
GET /logits has a digest of the logits' bytes: equal digests are equal logits, bit for bit. With --tp N
the process starts a rank for each further GPU.
"""

import argparse
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

BEGAN = time.perf_counter()
# Sums in one order, so that equal weights give equal logits.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402 - the time of the import is part of the start
import torch.distributed as dist  # noqa: E402
from relight import torch as relight_torch  # noqa: E402

import model as models  # noqa: E402

PROMPT_LENGTH = 64


class Timeline:
    def __init__(self):
        self.seconds = {}
        self._last = BEGAN

    def mark(self, name):
        now = time.perf_counter()
        self.seconds[f"{name}_s"] = round(now - self._last, 4)
        self._last = now


def main():
    given = arguments()
    timeline = Timeline()
    timeline.mark("import")
    torch.use_deterministic_algorithms(True, warn_only=True)
    if given.make:
        select(given)
        models.save(given.set, given.make, given.device)
        return
    others = start_others(given) if given.rank == 0 else []
    select(given)
    if given.tp > 1:
        join(given)
    timeline.mark("context")
    wait_for(given.hold)
    if given.tp > 1:
        dist.barrier()
    timeline.mark("hold")
    network, publication, report = weights(given, timeline)
    logits = first_token(network, timeline)
    if publication is None and given.socket:
        publication, report["publish"] = offer(network, given)
        timeline.mark("publish")
    state = {**timeline.seconds, **report, "logits": digest(logits)}
    ranks = gathered(state, given)
    if given.rank == 0:
        serve(given, ranks, others)
    else:
        sys.stdin.read()  # Ends with rank 0. Until then the publication holds.


def arguments():
    parser = argparse.ArgumentParser(description="A Hugging Face model class with random weights.")
    parser.add_argument("--set", required=True, choices=models.SETS)
    parser.add_argument("--make", help="write a checkpoint there, and end")
    parser.add_argument("--checkpoint")
    parser.add_argument("--from-disk", action="store_true", help="ask no live replica")
    parser.add_argument("--port", type=int, default=8300)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--gpus", default="0,1", help="the GPU of each rank")
    parser.add_argument("--hold", help="go on from the context only when this file is there")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    given = parser.parse_args()
    # Memory of the processor is not handed over.
    given.socket = os.environ.get("RELIGHT_AGENT_SOCKET") if given.device == "cuda" else None
    return given


def start_others(given):
    words = [word for word in sys.argv if not word.startswith("--rank")]
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(given.port + 1000))
    return [
        subprocess.Popen([sys.executable, *words, f"--rank={rank}"], stdin=subprocess.PIPE)
        for rank in range(1, given.tp)
    ]


def select(given):
    if given.device == "cuda":
        torch.cuda.set_device(int(given.gpus.split(",")[given.rank]))
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()


def join(given):
    backend = "nccl" if given.device == "cuda" else "gloo"
    dist.init_process_group(backend, rank=given.rank, world_size=given.tp)
    # The communicator is made at the first use, and both ways of loading need it.
    dist.all_reduce(torch.zeros(1, device=given.device))


def wait_for(hold):
    while hold and not pathlib.Path(hold).exists():
        time.sleep(0.005)


def place(given):
    return relight_torch.Place(tensor=(given.rank, given.tp))


def weights(given, timeline):
    """From a live replica where there is one, else from disk into a fresh structure."""
    if given.device == "cuda":
        relight_torch.reserve(models.model_bytes(given.set, given.tp))
    if given.socket and not given.from_disk:
        network = models.build(given.set, given.tp, given.device)
        torch.cuda.synchronize()
        timeline.mark("structure")
        start = relight_torch.load_into(network, model=given.set, place=place(given))
        timeline.mark("weights")
        report = {"from": "peer" if start.warm else start.code, "report": start.report}
        if start.warm:
            return network, start.publication, report
    else:
        report = {"from": "disk"}
    network = models.load(given.set, given.checkpoint, given.rank, given.tp, given.device)
    if given.device == "cuda":
        torch.cuda.synchronize()
    timeline.mark("disk")
    return network, None, report


def offer(network, given):
    """What could not be offered costs others a source, and this engine nothing."""
    try:
        return relight_torch.publish(network, model=given.set, place=place(given)), "ok"
    except relight_torch.AgentError as error:
        return None, f"{error.code}: {error}"


@torch.inference_mode()
def first_token(network, timeline):
    ids = torch.arange(PROMPT_LENGTH, device=network.device)[None] * 97 % network.config.vocab_size
    logits = network(input_ids=ids, use_cache=False).logits[0]
    int(logits[-1].argmax())  # The token itself: waits for the GPU.
    timeline.mark("first_token")
    return logits


def digest(logits):
    values = logits.float().cpu().numpy()
    return {
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        "shape": list(values.shape),
        "token": int(values[-1].argmax()),
        "mean_abs": float(abs(values).mean()),
    }


def gathered(state, given):
    if given.tp == 1:
        return [state]
    ranks = [None] * given.tp
    dist.all_gather_object(ranks, state)
    return ranks


def serve(given, ranks, others):
    pages = {"/health": {"ranks": ranks}, "/logits": ranks[0]["logits"]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            if page is None:
                self.send_error(404)
                return
            body = json.dumps(page).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """One line per health poll would bury the engine's own output."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    threading.Thread(target=watch, args=(others, server), daemon=True).start()
    print(f"hf-engine: {json.dumps(ranks[0])}", flush=True)
    server.serve_forever()


def watch(others, server):
    """A model without one of its ranks serves nothing."""
    if others:
        others[0].wait()
        server.shutdown()


if __name__ == "__main__":
    main()

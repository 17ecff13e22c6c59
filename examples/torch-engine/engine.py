# SPDX-License-Identifier: Apache-2.0
"""A real transformer with random weights under torch.compile, served with /health: what a GPU engine's
start looks like to Relight, small enough to measure.

    python3 engine.py --port 8200 [--layers 2] [--lengths 1,128,1024]

Caches are where PyTorch keeps them: TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR move them.
GET /health answers 200 once every prompt length has been compiled and run, with the seconds of each
phase, the hit and miss counters of PyTorch's own caches, and a digest of the logits.
"""

import argparse
import hashlib
import http.server
import json
import os
import time

BEGAN = time.perf_counter()
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "1")

import torch  # noqa: E402 - the time of the import is part of the start
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

IMPORTED = time.perf_counter()


def build(layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=4096,
    )
    with torch.device("cuda"):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def compile_and_run(model, lengths):
    # max-autotune, so that Triton really compiles and times its candidates.
    compiled = torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False)
    digest = hashlib.sha256()
    with torch.inference_mode():
        for length in lengths:
            ids = (torch.arange(length, device="cuda") % 32000)[None]
            logits = compiled(input_ids=ids, use_cache=False).logits
            digest.update(f"{logits.float().abs().mean().item():.4f}".encode())
    torch.cuda.synchronize()
    return digest.hexdigest()[:16]


def counters():
    from torch._dynamo.utils import counters as all_counters

    wanted = ("cache", "hit", "miss", "bypass", "autotune", "benchmark")
    return {
        group: {name: count for name, count in values.items() if any(word in name for word in wanted)}
        for group, values in all_counters.items()
        if group in ("inductor", "aot_autograd")
    }


def main():
    parser = argparse.ArgumentParser(description="A transformer under torch.compile that serves /health.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lengths", default="1,128,1024", help="prompt lengths to compile for")
    arguments = parser.parse_args()
    model = build(arguments.layers)
    torch.cuda.synchronize()
    built = time.perf_counter()
    logits = compile_and_run(model, [int(length) for length in arguments.lengths.split(",")])
    ready = time.perf_counter()
    state = {
        "import_s": round(IMPORTED - BEGAN, 2),
        "model_s": round(built - IMPORTED, 2),
        "compile_s": round(ready - built, 2),
        "total_s": round(ready - BEGAN, 2),
        "logits": logits,
        "counters": counters(),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/health":
                self.send_error(404)
                return
            body = json.dumps(state).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """One line per health poll would bury the engine's own output."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    print(f"torch-engine: {json.dumps(state)}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

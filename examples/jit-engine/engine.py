# SPDX-License-Identifier: Apache-2.0
"""A small, honest stand-in for an inference engine, for machines without a GPU.

At start it specialises some dozens of C kernels for its model's shapes, compiles each with the
machine's own compiler into a cache keyed by content, loads them, runs each once and only then answers
on /health, as an engine with a JIT does. A kernel whose key is in the cache is loaded, not compiled.

    python3 engine.py --port 8100 --cache DIR [--kernels 48]

GET /health   {"kernels": 48, "compiled": 0, "loaded": 48, "checksum": "..."} once every kernel ran
GET /compile?shape=N   compiles one more kernel while serving, as a new prompt length does
"""

import argparse
import concurrent.futures
import ctypes
import hashlib
import http.server
import json
import os
import subprocess
import threading
import urllib.parse

FLAGS = ["-O3", "-ffast-math", "-funroll-loops", "-shared", "-fPIC", "-std=c11"]
HIDDEN = [64, 96, 128, 160, 192, 256]

# Each template is specialised by its shape: constants let the compiler unroll and vectorise, which is
# what takes its time, here as in Triton or Inductor.
GEMM = """
#define M {m}
#define N {n}
#define K {k}
static void tile(const float *a, const float *b, float *c) {{
{body}
}}
"""


def unrolled_gemm(m, n, k):
    lines = []
    for i in range(m):
        for j in range(n):
            terms = " + ".join(f"a[{i * k + p}] * b[{p * n + j}]" for p in range(k))
            lines.append(f"  c[{i * n + j}] += {terms};")
    return GEMM.format(m=m, n=n, k=k, body="\n".join(lines))


def source_of(index, extra=0):
    """The C source of one kernel: an unrolled GEMM tile inside a fused normalise-multiply-activate."""
    hidden = HIDDEN[index % len(HIDDEN)]
    m, n, k = 4 + index % 3, 8, 16 + 2 * (index % 5)
    return f"""
#include <math.h>
#define HIDDEN {hidden + extra}
#define SEED {index + 1}
{unrolled_gemm(m, n, k)}
double run(const float *x, float *y, int rows) {{
  double sum = 0.0;
  for (int r = 0; r < rows; r++) {{
    float scale = 1e-6f;
    for (int i = 0; i < HIDDEN; i++) scale += x[i] * x[i];
    scale = 1.0f / sqrtf(scale / HIDDEN);
    float a[M * K], b[K * N], c[M * N] = {{0}};
    for (int i = 0; i < M * K; i++) a[i] = x[i % HIDDEN] * scale;
    for (int i = 0; i < K * N; i++) b[i] = x[(i * SEED) % HIDDEN];
    tile(a, b, c);
    for (int i = 0; i < HIDDEN; i++) {{
      float v = c[i % (M * N)] + x[i];
      y[i] = v / (1.0f + expf(-v));
      sum += y[i];
    }}
  }}
  return sum;
}}
"""


class Jit:
    def __init__(self, cache):
        self.cache = cache
        self.compiled = 0
        self.loaded = 0
        self.lock = threading.Lock()
        self.compiler = os.environ.get("CC", "cc")
        self.version = subprocess.run([self.compiler, "--version"], check=True, capture_output=True).stdout
        os.makedirs(cache, exist_ok=True)

    def kernel(self, source):
        key = hashlib.sha256(self.version + " ".join(FLAGS).encode() + source.encode()).hexdigest()
        folder = os.path.join(self.cache, key[:2], key)
        library = os.path.join(folder, "kernel.so")
        if not os.path.exists(library):
            self.compile(source, folder, library)
        handle = ctypes.CDLL(library)
        handle.run.restype = ctypes.c_double
        with self.lock:
            self.loaded += 1
        return handle.run

    def compile(self, source, folder, library):
        os.makedirs(folder, exist_ok=True)
        draft = os.path.join(folder, f"tmp.{os.getpid()}.{threading.get_ident()}")
        with open(draft + ".c", "w", encoding="utf-8") as file:
            file.write(source)
        subprocess.run([self.compiler, *FLAGS, draft + ".c", "-o", draft + ".so", "-lm"], check=True)
        os.replace(draft + ".c", os.path.join(folder, "kernel.c"))
        # The library last and by rename: its presence is what says that the kernel is complete.
        os.replace(draft + ".so", library)
        with self.lock:
            self.compiled += 1


def run_once(kernel):
    x = (ctypes.c_float * 4096)(*[((i * 37) % 101) / 101.0 - 0.5 for i in range(4096)])
    y = (ctypes.c_float * 4096)()
    return f"{kernel(x, y, 8):.6e}"


def main():
    parser = argparse.ArgumentParser(description="A stand-in engine that compiles C kernels at start.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cache", default=os.environ.get("JIT_ENGINE_CACHE"), required="JIT_ENGINE_CACHE" not in os.environ)
    parser.add_argument("--kernels", type=int, default=48)
    arguments = parser.parse_args()
    jit = Jit(arguments.cache)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = list(pool.map(lambda index: jit.kernel(source_of(index)), range(arguments.kernels)))
    results = [run_once(kernel) for kernel in kernels]
    checksum = hashlib.sha256("\n".join(results).encode()).hexdigest()[:16]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            if url.path == "/compile":
                shape = int(urllib.parse.parse_qs(url.query)["shape"][0])
                run_once(jit.kernel(source_of(shape, extra=8)))
            elif url.path != "/health":
                self.send_error(404)
                return
            state = {"kernels": len(kernels), "compiled": jit.compiled, "loaded": jit.loaded, "checksum": checksum}
            body = json.dumps(state).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """One line per health poll would bury the engine's own output."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    print(f"jit-engine: {len(kernels)} kernels, {jit.compiled} compiled, checksum {checksum}, port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What the engine's own Python knows of the facts that a JIT cache depends on, as one JSON line.

Run by the agent before the engine starts, under the engine's interpreter. Reads package metadata
instead of importing packages where that is enough: importing torch alone can take ten seconds.
What cannot be found out is absent; the agent calls it unknown.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys

# Run by path, so this folder comes first on the path, and its torch.py is not the engine's torch.
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != HERE]

# Distribution names differ from import names; the first that is installed counts.
DISTRIBUTIONS = {
    "torch": ["torch"],
    "triton": ["triton", "pytorch-triton"],
    "flashinfer": ["flashinfer-python", "flashinfer"],
    "deep_gemm": ["deep-gemm", "deep_gemm"],
    "tilelang": ["tilelang"],
    "cutlass_dsl": ["nvidia-cutlass-dsl"],
    "tvm_ffi": ["apache-tvm-ffi", "tvm-ffi"],
}
# Looked up in this order when the command does not say which engine it starts.
FRAMEWORKS = ["vllm", "sglang", "tensorrt-llm"]


def version_of(names):
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def folder_of(module):
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec else []
    return places[0] if places else None


def cuda_of_torch():
    """torch/version.py says which CUDA the wheel was built for, without importing torch."""
    folder = folder_of("torch")
    if folder is None:
        return None
    scope = {}
    with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:
        exec(compile(file.read(), "version.py", "exec"), scope)  # noqa: S102 - the engine's own package
    return scope.get("cuda")


def gpu_arch():
    """Compute capability of the first visible GPU, such as sm_90, without creating a context."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h.
    if cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device) != 0:
        return None
    if cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device) != 0:
        return None
    return f"sm_{major.value}{minor.value}"


def triton_key():
    """Triton's own hash of its compiler and libraries, the part of its cache keys that we cannot see."""
    try:
        from triton.runtime.cache import triton_key as key
    except ImportError:
        from triton.compiler.compiler import triton_key as key
    import hashlib

    return hashlib.sha256(key().encode()).hexdigest()[:16]


def nvcc():
    compiler = os.environ.get("CUDA_HOME") and os.path.join(os.environ["CUDA_HOME"], "bin", "nvcc")
    compiler = compiler if compiler and os.path.exists(compiler) else shutil.which("nvcc")
    if not compiler:
        return None
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=5).stdout
    return next((word[1:] for word in text.split() if word.startswith("V") and word[1:2].isdigit()), None)


def main():
    facts, failures = {}, {}

    def learn(name, ask):
        try:
            value = ask()
        except Exception as error:  # One unknown fact must not hide the others.
            failures[name] = f"{type(error).__name__}: {error}"[:200]
            return
        if value is not None:
            facts[name] = str(value)

    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for framework in [wanted] if wanted else FRAMEWORKS:
        learn("framework_version", lambda name=framework: version_of([name]))
        if "framework_version" in facts:
            facts["framework"] = framework
            break
    for fact, names in DISTRIBUTIONS.items():
        learn(fact, lambda names=names: version_of(names))
    learn("python", lambda: f"{sys.implementation.cache_tag}")
    learn("machine", platform.machine)
    if "torch" in facts:
        learn("cuda", cuda_of_torch)
    if "triton" in facts:
        learn("triton_key", triton_key)
    if "deep_gemm" in facts:
        learn("deep_gemm_path", lambda: folder_of("deep_gemm"))
    if "flashinfer" in facts:
        learn("flashinfer_path", lambda: folder_of("flashinfer"))
    if "deep_gemm" in facts or "flashinfer" in facts:
        learn("nvcc", nvcc)
    if any(name in facts for name in ("torch", "triton", "flashinfer")):
        learn("gpu_arch", gpu_arch)
    print(json.dumps({"facts": facts, "failures": failures}))


main()

# SPDX-License-Identifier: Apache-2.0
"""Unpacks what tools/pack-device.ts packed, with nothing but Python's standard library."""

import lzma
import pathlib
import shutil
import tarfile

root = pathlib.Path(__file__).resolve().parent.parent
modules = root / "node_modules"
node = modules / ".bin" / "node"
node.parent.mkdir(parents=True, exist_ok=True)
with lzma.open(root / ".carry" / "node.xz") as packed, open(node, "wb") as binary:
    shutil.copyfileobj(packed, binary)
node.chmod(0o755)
with tarfile.open(root / ".carry" / "modules.tar.xz") as archive:
    archive.extractall(modules, filter="data")

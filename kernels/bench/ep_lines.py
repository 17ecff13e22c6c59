# SPDX-License-Identifier: Apache-2.0
"""Turns the outputs of ep_bench.py (and digest_check.py) into bench/results/ep.json.

    python3 kernels/bench/ep_lines.py --commit SHA --date ISO ep8.json ep4.json digest.json > bench/results/ep.json
"""
import argparse
import json

# DeepEP low-latency kernels on 8 x H200, one node, kernel averages (aiconfigurator's data, sglang 0.5.12).
PUBLISHED = {1: (11.9, 12.6), 8: (12.3, 15.0), 16: (14.2, 18.3), 32: (16.5, 24.6), 64: (23.0, 38.8),
             128: (35.1, 67.7), 256: (60.5, 124.5), 512: (112.4, 244.1), 1024: (211.1, 481.0)}
NIXL_WINDOW_MB = 1908


def line(name, value, unit, baseline=None, faster=True):
    found = {"name": name, "value": round(value, 3), "unit": unit}
    if baseline is not None:
        found["baseline"] = round(baseline, 3)
        found["ratio"] = round(baseline / value if faster else value / baseline, 3)
    return found


def lines_of(results, ranks):
    found, at = [], f"r{ranks}"
    push = results["push"]
    found.append(line(f"ep.push.gbs.{at}", push["gbs"], "GB/s"))
    for name, row in results.items():
        kind, _, tokens = name.partition("_")
        if kind == "pair" and tokens.isdigit():
            for index, half in enumerate(("dispatch", "combine")):
                us = row[half]["p50_us"]
                known = PUBLISHED.get(int(tokens)) if ranks == 8 else None
                found.append(line(f"ep.{half}.us.{at}.t{tokens}", us, "us", known and known[index]))
                naive = results.get(f"select_{tokens}")
                if naive:
                    found.append(line(f"ep.{half}.vs_naive.{at}.t{tokens}", us, "us", naive[half]["p50_us"]))
                found.append(line(f"ep.{half}.share_of_roofline.{at}.t{tokens}",
                                  row[half + "_share_of_push"], "share"))
        if kind == "profiler" and tokens.isdigit():
            for index, half in enumerate(("dispatch", "combine")):
                known = PUBLISHED.get(int(tokens)) if ranks == 8 else None
                found.append(line(f"ep.{half}.cupti_mean_us.{at}.t{tokens}", row[half + "_mean_us"], "us",
                                  known and known[index]))
        if kind == "nccl" and f"wall_{tokens}" in results:
            ours = results[f"wall_{tokens}"]["graph_us"]
            for way in ("per_rank", "per_selection"):
                theirs = row[f"{way}_dispatch_us"] + row[f"{way}_combine_us"]
                found.append(line(f"ep.pair.vs_nccl_all_to_all.wire_{way}.{at}.t{tokens}", ours, "us", theirs))
        if name.startswith("end_to_end"):
            tokens = name.rsplit("_", 1)[1]
            ours = results[f"wall_{tokens}"]["eager_us"]
            found.append(line(f"ep.pair.vs_nccl_all_to_all.end_to_end.{at}.t{tokens}", ours, "us", row["pair_us"]))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--commit", required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("eight")
    parser.add_argument("four")
    parser.add_argument("digest")
    o = parser.parse_args()
    eight, four, digest = (json.load(open(p)) for p in (o.eight, o.four, o.digest))
    lines = lines_of(eight, 8) + lines_of(four, 4)
    lines.append(line("ep.window.mb.r8.t128", 58.9, "MB", NIXL_WINDOW_MB))
    best = max(digest["gbs_by_blocks_per_sm"].values())
    lines.append(line("weights.digest.gbs", best, "GB/s", digest["copy_gbs"], faster=False))
    print(json.dumps({
        "name": "ep", "date": o.date, "commit": o.commit,
        "command": "NCCL_NVLS_ENABLE=0 python3 kernels/bench/ep_bench.py --ranks {8,4} --out FILE; "
                   "python3 kernels/test/digest_check.py --out FILE",
        "machine": {"gpus": "8 x NVIDIA H200, NVLink (18 links a pair)", "driver": "580.159", "cuda": "13.0",
                    "torch": "2.11.0+cu130", "nccl": "NCCL_NVLS_ENABLE=0",
                    "note": "4 ranks ran on 4 of the 8 GPUs; the digest on one GPU"},
        "shape": "hidden 7168, top 8, 256 experts; FP8 dispatch packed, BF16 combine; 132 blocks",
        "method": "docs/kernels.md; us = p50 over 200 steps of the slowest rank, right after a GPU barrier; "
                  "baseline of us.r8: DeepEP LL on 8 x H200 (published kernel averages)",
        "lines": lines, "detail": {"r8": eight, "r4": four, "digest": digest}}, indent=1))


if __name__ == "__main__":
    main()

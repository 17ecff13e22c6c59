# SPDX-License-Identifier: Apache-2.0
"""Turns the outputs of ep_bench.py, digest_check.py and the elastic benches into bench/results/ep.json.

    python3 kernels/bench/ep_lines.py --commit SHA --date ISO --keep bench/results/ep.json --four ep4.json
        --elastic elastic.json soak.json --nccl nccl.json > NEW
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


def elastic_lines(elastic, nccl):
    """Lines of bench/ep-elastic.ts as they are, and a growth against NCCL's."""
    found = [line for one in elastic for line in one]
    value = {line["name"]: line["value"] for line in found}
    if nccl and "ep.join.ready_to_first_step_ms" in value:
        found.append(line("ep.scale.vs_nccl_recreate", value["ep.join.ready_to_first_step_ms"], "ms",
                          nccl["all_ms"]))
        found.append(line("ep.scale.standstill_vs_nccl_recreate", value["ep.join.worst_iteration_ms"], "ms",
                          nccl["all_ms"]))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--commit", required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--note", default="")
    parser.add_argument("--keep", help="an earlier ep.json: what is not given anew is taken from it")
    for name in ("eight", "four", "digest", "nccl"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--elastic", nargs="*", default=[])
    o = parser.parse_args()
    load = lambda path: json.load(open(path))  # noqa: E731
    kept = load(o.keep)["detail"] if o.keep else {}
    given = {"r8": o.eight, "r4": o.four, "digest": o.digest, "nccl_recreate": o.nccl}
    detail = {name: load(path) if path else kept.get(name) for name, path in given.items()}
    detail["elastic"] = [load(path) for path in o.elastic] or kept.get("elastic", [])
    lines = lines_of(detail["r8"], 8) + lines_of(detail["r4"], 4)
    lines.append(line("ep.window.mb.r8.t128", 58.9, "MB", NIXL_WINDOW_MB))
    best = max(detail["digest"]["gbs_by_blocks_per_sm"].values())
    lines.append(line("weights.digest.gbs", best, "GB/s", detail["digest"]["copy_gbs"], faster=False))
    lines += elastic_lines(detail["elastic"], detail["nccl_recreate"])
    print(json.dumps({
        "name": "ep", "date": o.date, "commit": o.commit,
        "command": "NCCL_NVLS_ENABLE=0 python3 kernels/bench/ep_bench.py --ranks {8,4} --out FILE; "
                   "python3 kernels/test/digest_check.py --out FILE; npm run bench -- ep-elastic; "
                   "NCCL_NVLS_ENABLE=0 python3 bench/ep_nccl_recreate.py --out FILE",
        "machine": {"gpus": "NVIDIA H200, NVLink (18 links a pair)", "driver": "580.159", "cuda": "13.0",
                    "torch": "2.11.0+cu130", "nccl": "NCCL_NVLS_ENABLE=0",
                    "note": o.note or "r8 on 8 GPUs; r4 and the elastic lines on 4; the digest on one"},
        "shape": "kernels: hidden 7168, top 8, 256 experts, FP8 dispatch packed, BF16 combine, 132 blocks; "
                 "elastic: a layer of hidden 2048, inner 1024, 32 experts, top 4, 64 tokens a rank, BF16",
        "method": "docs/kernels.md; us = p50 over 200 steps of the slowest rank, right after a GPU barrier; "
                  "baseline of us.r8: DeepEP LL on 8 x H200 (published kernel averages); elastic: wall time of "
                  "a Node process for a whole step, medians of 5 rounds, `of_all` the worst of all",
        "lines": lines, "detail": detail}, indent=1))


if __name__ == "__main__":
    main()

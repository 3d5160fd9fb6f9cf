#!/usr/bin/env python3
"""Instructions that a token takes, under callgrind: a comparison that a busy machine cannot blur.

    python3 tests/peers/instructions.py BASE.gguf ... [--peers llama,ik]

Callgrind knows AVX2 but neither AVX-VNNI nor AVX-512: conpet-run then takes its AVX2 kernels, and a
peer that was compiled for more cannot run. Each engine does its work once and three times; half of the
difference is the work itself, without opening the file. One thread, since spinning is no work.
"""
import argparse
import pathlib
import re
import subprocess
import sys

import compare

ROOT = pathlib.Path(__file__).resolve().parents[2]


def instructions(command):
    """Instructions of a whole process, in billions."""
    call = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--trace-children=no"]
    done = subprocess.run(call + command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "no output")
    return int(found.group(1)) / 1e9


def worker(peer, model, prompt, answer, times):
    decode, clear = compare.load(peer, model, 1)
    ids = [i * 7919 % 32000 for i in range(max(prompt, answer))]
    for _ in range(times):
        clear()
        decode(ids[:prompt], 0)
        clear()
        for at in range(answer):
            decode(ids[at : at + 1], at)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("models", nargs="+")
    a.add_argument("--peers", default="llama,ik")
    a.add_argument("--prompt", type=int, default=64)
    a.add_argument("--answer", type=int, default=4)
    a.add_argument("--worker", help=argparse.SUPPRESS)
    a.add_argument("--times", type=int, help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.worker:
        return worker(a.worker, a.models[0], a.prompt, a.answer, a.times)
    peers = [p for p in a.peers.split(",") if p]
    subprocess.run(["cargo", "build", "--release", "-q", "-p", "conpet-runtime"], check=True, cwd=ROOT)
    python = compare.environment(peers)
    for model in a.models:
        print(f"{pathlib.Path(model).name}: millions of instructions a token")
        for engine in ["conpet"] + peers:

            def total(prompt, answer, times):
                sizes = [str(prompt), str(answer), str(times)]
                if engine == "conpet":
                    run = [ROOT / "target/release/conpet-run", "bench", "-m", model, "-t", "1", "-p", sizes[0], "-n", sizes[1], "-r", sizes[2]]
                    return instructions(run)
                return instructions([python, __file__, model, "--worker", engine, "--prompt", sizes[0], "--answer", sizes[1], "--times", sizes[2]])

            def work(prompt, answer):
                return (total(prompt, answer, 3) - total(prompt, answer, 1)) / 2 * 1000

            try:
                # A token decoded at the start is taken out of the prompt's figure, and the other way.
                small, prompt, answer = work(1, 1), work(a.prompt, 1), work(1, a.answer)
            except RuntimeError as e:
                print(f"  {engine:7} cannot run there: {e}")
                continue
            print(f"  {engine:7} prefill {(prompt - small) / (a.prompt - 1):8.1f}   decode {(answer - small) / (a.answer - 1):8.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

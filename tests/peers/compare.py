"""conpet-run beside llama.cpp and ik_llama.cpp on the same GGUF: speed and memory.

    python3 tests/peers/compare.py BASE.gguf [BASE.gguf ...] [--rounds 5] [--threads 2]

Builds conpet-run, makes a virtual environment under build/peers and installs the peers in it from
the package index (llama-cpp-python is compiled for this machine: ten minutes the first time;
`--peers ik` leaves it out). Then, round after round, each engine in turn runs in a process of its
own: it reads a prompt of 512 tokens and decodes 64, after one run that is not measured. Ratios are
taken within a round, so that a machine that slows down slows all of them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = {"ik": "ik-llama-cpp-python==0.1.5", "llama": "llama-cpp-python==0.3.36"}


def memory():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return {name: int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "VmHWM")}


def load(peer, model, threads):
    """An engine with a context of 1,024 tokens; returns how to decode tokens at a place, and how to forget them."""
    import ctypes

    if peer == "ik":
        from ik_llama_cpp import _ctypes_api as C

        clear = C.llama_kv_cache_clear
        batch_one = C._lib.llama_batch_get_one
        batch_one.argtypes = [C.llama_token_p, ctypes.c_int32, C.llama_pos, C.llama_seq_id]
        batch_one.restype = C.llama_batch
        one = lambda tokens, at: batch_one(tokens, len(tokens), at, 0)
    else:
        import llama_cpp as C

        clear = lambda ctx: C.llama_memory_clear(C.llama_get_memory(ctx), True)
        one = lambda tokens, at: C.llama_batch_get_one(tokens, len(tokens))
    C.llama_backend_init()
    mp = C.llama_model_default_params()
    mp.n_gpu_layers = 0
    m = C.llama_model_load_from_file(os.fsencode(model), mp)
    cp = C.llama_context_default_params()
    cp.n_ctx, cp.n_batch, cp.n_ubatch = 1024, 512, 512
    cp.n_threads = cp.n_threads_batch = threads
    ctx = C.llama_init_from_model(m, cp)

    def decode(tokens, at):
        ids = (ctypes.c_int32 * len(tokens))(*tokens)  # the batch only points to it
        if C.llama_decode(ctx, one(ids, at)) != 0:
            sys.exit("decoding failed")

    return decode, lambda: clear(ctx)


def opened(C, model, tokens, threads=2, **settings):
    """A model and its context of so many tokens, which are one batch, in llama-cpp-python's `C`."""
    C.llama_backend_init()
    mp = C.llama_model_default_params()
    mp.n_gpu_layers = 0
    m = C.llama_model_load_from_file(os.fsencode(model), mp)
    cp = C.llama_context_default_params()
    cp.n_ctx = cp.n_batch = cp.n_ubatch = tokens
    cp.n_threads = cp.n_threads_batch = threads
    for name, value in settings.items():
        setattr(cp, name, value)
    return m, C.llama_init_from_model(m, cp)


def worker(peer, model, threads, prompt, answer):
    """One engine, one round, in a process of its own; prints JSON."""
    begin = time.perf_counter()
    decode, clear = load(peer, model, threads)
    opened = time.perf_counter() - begin
    ids = [i * 7919 % 32000 for i in range(max(prompt, answer))]

    def prefill():
        clear()
        begin = time.perf_counter()
        decode(ids[:prompt], 0)
        return time.perf_counter() - begin

    def generate():
        clear()
        begin = time.perf_counter()
        for at in range(answer):
            decode(ids[at : at + 1], at)
        return time.perf_counter() - begin

    prefill()
    pp = prompt / prefill()
    rss = memory()
    generate()
    print(json.dumps({"pp": pp, "tg": answer / generate(), "open_s": opened, "anon_kb": rss["RssAnon"], "file_kb": rss["RssFile"]}))


def ours(model, threads, prompt, answer):
    run = [ROOT / "target/release/conpet-run", "bench", "-m", model, "-p", str(prompt), "-n", str(answer), "-r", "1", "-t", str(threads), "--json"]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"conpet-run failed on {model}:\n{done.stderr}")
    pp, tg = json.loads(done.stdout)
    return {"pp": pp["avg_ts"], "tg": tg["avg_ts"], "open_s": pp["open_ms"] / 1e3, "anon_kb": pp["rss_anon_kb"], "file_kb": pp["rss_file_kb"], "bytes": pp["bytes_per_token"]}


def bandwidth(threads):
    """GB/s that `threads` threads read together from memory larger than any cache."""
    import threading

    import numpy

    parts = [numpy.ones(1 << 26) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        work = [threading.Thread(target=p.max) for p in parts]
        [w.start() for w in work]
        [w.join() for w in work]
        best = max(best, threads * parts[0].nbytes / (time.perf_counter() - begin) / 1e9)
    return best


def installed(place, packages):
    """A virtual environment that has these packages; returns its python."""
    python = pathlib.Path(place) / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    for package in packages:
        name = package.split("==")[0]
        if subprocess.run([python, "-m", "pip", "show", "-q", name], capture_output=True).returncode != 0:
            print(f"installing {package}", file=sys.stderr)
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True, stdout=sys.stderr)
    return python


def environment(peers):
    """The virtual environment with the peers; returns its python."""
    return installed(ROOT / "build/peers", ["numpy"] + [PEERS[p] for p in peers])


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("models", nargs="+")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--prompt", type=int, default=512)
    a.add_argument("--answer", type=int, default=64)
    a.add_argument("--peers", default="llama,ik")
    a.add_argument("--worker", help=argparse.SUPPRESS)
    a.add_argument("--busy", type=int, default=0, help="also measure beside so many busy processes")
    a.add_argument("--json", action="store_true", help="print every round as JSON")
    a = a.parse_args()
    if a.worker == "bandwidth":
        return print(json.dumps(bandwidth(a.threads)))
    if a.worker:
        return worker(a.worker, a.models[0], a.threads, a.prompt, a.answer)
    peers = [p for p in a.peers.split(",") if p]
    subprocess.run(["cargo", "build", "--release", "-q", "-p", "conpet-runtime"], check=True, cwd=ROOT)
    python = environment(peers)
    for model in a.models:
        def measure(engine):
            if engine == "conpet":
                return ours(model, a.threads, a.prompt, a.answer)
            call = [python, __file__, model, "--worker", engine, "--threads", str(a.threads), "--prompt", str(a.prompt), "--answer", str(a.answer)]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{engine} failed on {model}:\n{done.stderr[-2000:]}")
            return json.loads(done.stdout.splitlines()[-1])

        rounds = []
        for _ in range(a.rounds):
            row = {}
            for engine in ["conpet"] + peers:
                row[engine] = measure(engine)
                if a.busy:
                    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(a.busy)]
                    try:
                        busy = measure(engine)
                    finally:
                        [o.kill() for o in others]
                        [o.wait() for o in others]
                    row[engine] |= {f"busy_{key}": busy[key] / row[engine][key] for key in ("pp", "tg")}
            row["bandwidth"] = measure("bandwidth")
            rounds.append(row)
        print(f"\n{pathlib.Path(model).name}, {a.threads} threads, {a.rounds} rounds: median (least to most)")
        middle = lambda v: statistics.median(v)
        spread = lambda v, d: f"{middle(v):.{d}f} ({min(v):.{d}f} to {max(v):.{d}f})"
        for engine in ["conpet"] + peers:
            r = [row[engine] for row in rounds]
            line = f"  {engine:7} prefill {spread([x['pp'] for x in r], 0):24} decode {spread([x['tg'] for x in r], 0):22}"
            line += f" private {middle([x['anon_kb'] for x in r]) / 1000:.0f} MB, mapped {middle([x['file_kb'] for x in r]) / 1000:.0f} MB"
            print(line)
            if a.busy:
                print(f"    beside {a.busy} busy processes: prefill {spread([x['busy_pp'] for x in r], 2)}, decode {spread([x['busy_tg'] for x in r], 2)} of that")
        for p in peers:
            ratio = lambda key: [row["conpet"][key] / row[p][key] for row in rounds]
            print(f"  conpet / {p:6} prefill {spread(ratio('pp'), 2):24} decode {spread(ratio('tg'), 2)}")
        reads = [row["conpet"]["bytes"] * row["conpet"]["tg"] / 1e9 for row in rounds]
        part = [100 * r / row["bandwidth"] for r, row in zip(reads, rounds)]
        print(f"  decode reads {rounds[0]['conpet']['bytes'] / 1e6:.1f} MB a token: {middle(reads):.1f} GB/s, {spread(part, 0)} % of the bandwidth in the same round ({spread([row['bandwidth'] for row in rounds], 1)} GB/s)")
        if a.json:
            print(json.dumps({"model": pathlib.Path(model).name, "rounds": rounds}))


if __name__ == "__main__":
    main()

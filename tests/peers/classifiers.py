"""What a user would pick for labelled rows: conpet beside a linear SVM, and beside logistic regression on an encoder.

    python3 tests/peers/classifiers.py [--streams NAME,..] [--rows 5,10,20,all] [--seeds 5] [--who NAME,..]
                                       [--data DIR] [--bin DIR] [--threads 2] [--out FILE] [--resume] [--quick]

Five streams: clinc150 (10 tasks, 150 classes; its out_of_scope as inputs of no task), fewrel16 (8 tasks, 16 classes,
entities marked), first-run (the two tasks with labels of examples/stream), and two made of the same data: topics (news,
reviews and sentences of long_sequence as bare texts, 11 classes, at most 200 training rows of each) and
relations-plain (fewrel16 without marks and template, in four tasks of four).

Who is compared:
* svm: TF-IDF of words and of pieces of words, and a linear SVM;
* minilm-lr: the unit vectors of all-MiniLM-L6-v2, and logistic regression;
* smollm2, minilm: `conpet-train stream --method dynamic` on either base; -quick: the closed form alone.

For each seed, --rows training rows of each class are drawn, the same ones for all. The references are fitted on all
classes at once; ours learns task after task. Accuracy is over the classes of all tasks joined, on all test rows, which
are used for nothing else. No one sees the streams' validation splits; where conpet-train cannot do without one, a row
of each class is taken out of those drawn. Its own seed is the draw's.

Needs pip, and DIR with the streams' folders. Builds conpet-train, unless --bin names a folder with one. A result is
appended to build/classifiers/results.jsonl as soon as it is there; --resume uses those with the same rows, settings and
versions, and goes on with a run of ours that was killed. In the end the cells that were asked for replace those in FILE
(docs/results/few-rows.json), others are kept; each cell has its own commit and machine. --quick tries the whole way:
first-run, 5 rows, one seed, into build/classifiers.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import sys
import time

import classifiers_ours
import compare

ROOT = compare.ROOT
WORK = ROOT / "build/classifiers"
NEEDED = ["numpy", "scipy==1.17.1", "safetensors==0.8.0", "tokenizers==0.23.3", "onnx==1.23.2", "onnxruntime==1.32.0", "scikit-learn==1.9.1"]
VERSIONS = {"svm": ["numpy", "scipy", "scikit-learn"], "minilm-lr": ["numpy", "scipy", "scikit-learn", "tokenizers", "onnxruntime"]}
BASES = {"smollm2": "build/first-run/SmolLM2-135M-Instruct.Q4_1.gguf", "minilm": "build/first-run/minilm.Q8_0.gguf"}
# Ours: the base, arguments beside the defaults, and how many rows of each class are held out to validate on; None is
# none where conpet-train can do without, else one. An argument that conpet-train does not have leaves the row out.
OURS = {
    "smollm2": ("smollm2", [], None),
    "minilm": ("minilm", [], None),
    "smollm2-quick": ("smollm2", ["--quick"], None),
    "minilm-quick": ("minilm", ["--quick"], None),
}
WHO = [*VERSIONS, *OURS]


def machine(threads):
    cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    memory = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemTotal"))
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory / 1e6, 1), "threads": threads, "system": platform.system(), "python": platform.python_version()}


class Results:
    """Results so far, and the file that each is appended to."""

    def __init__(self, path, resume):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.known = path, {}
        for line in path.read_text().splitlines() if path.exists() and resume else []:
            try:
                r = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            self.known[json.dumps(r["key"], sort_keys=True)] = r

    def get(self, key):
        return self.known.get(json.dumps(key, sort_keys=True))

    def keep(self, result):
        begun = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with open(self.path, "a") as f:
            f.write("\n" * begun + json.dumps(result) + "\n")
            f.flush()
            os.fsync(f.fileno())


def reference(stream, drawn, who, seed, vectors):
    """Figures of one of the references, and no further settings; minutes are those of fitting and answering, without an encoder's vectors."""
    import classifiers_references as references

    train = [(text, (task, label)) for task, rows in drawn.items() for text, label in rows]
    test = stream.test()
    if who == "minilm-lr":
        vectors.of([text for text, _ in train + test])
    begin = time.perf_counter()
    got = references.svm(train, test, seed) if who == "svm" else references.minilm_lr(train, test, vectors)
    minutes = (time.perf_counter() - begin) / 60
    right = sum(a == b for a, (_, b) in zip(got, test))
    return {"right": right, "test_rows": len(test), "accuracy": right / len(test), "minutes": minutes}, None


def keyed(stream, drawn, k, seed, who, ours):
    """What a result is of. One with the same key is the same result."""
    if who in VERSIONS:
        import classifiers_references as references

        of = {p: importlib.metadata.version(p) for p in VERSIONS[who]}
        settings = references.SETTINGS[who]
    else:
        base, arguments, valid = OURS[who]
        of = {"conpet": ours.commit, "base": f"{pathlib.Path(BASES[base]).name} {ours.base(base)[1]}"}
        settings = {"arguments": ["--method", "dynamic", "--seed", "SEED", *arguments], "held_out_rows_a_class": ours.held_out(valid)}
    return {"stream": stream.name, "rows": k, "seed": seed, "who": who, "of": of, "settings": settings, "data": stream.digest(drawn)}


def measure(a, stream, rows, who, ours, vectors, results):
    """Results of a stream by rows and who, of all seeds; and the names of runs that failed."""
    found, failed = {}, {}
    for seed, k, w in itertools.product(range(a.seeds), rows, who):
        if w in VERSIONS and seed > 0 and stream.one_draw(k):
            continue  # it would be the same fit again
        drawn = stream.draw(k, seed)
        key = keyed(stream, drawn, k, seed, w, ours)
        name = f"{stream.name}, {k} rows, seed {seed}, {w}"
        result = results.get(key)
        if not result:
            try:
                figures, config = reference(stream, drawn, w, seed, vectors) if w in VERSIONS else ours.run(stream, drawn, OURS[w], key)
            except classifiers_ours.Failed as e:
                print(f"{name}: {e}", file=sys.stderr)
                failed[k, w] = name
                continue
            result = {"key": key, "figures": figures, "config": config, "train_rows": sum(map(len, drawn.values())), "date": time.strftime("%Y-%m-%d"), "commit": a.commit, "machine": machine(a.threads)}
            results.keep(result)
        print(f"{name}: {100 * result['figures']['accuracy']:.1f} % in {result['figures']['minutes']:.2f} min", file=sys.stderr)
        found.setdefault((k, w), []).append(result)
    # A mean over the seeds that worked would say too much.
    return {cell: r for cell, r in found.items() if cell not in failed}, list(failed.values())


def cell(results):
    """One cell of the table: means and standard deviations (of the sample, n - 1) over seeds."""
    first, out = results[0], {}
    for name in first["figures"]:
        each = [r["figures"][name] for r in results]
        if name in ("right", "test_rows") or any(v is None for v in each):
            continue
        out[name] = {"mean": statistics.mean(each), "sd": statistics.stdev(each) if len(each) > 1 else None}
    key = first["key"]
    return {
        "stream": key["stream"], "rows": key["rows"], "who": key["who"], "seeds": [r["key"]["seed"] for r in results],
        "train_rows": first["train_rows"], "test_rows": first["figures"]["test_rows"], "right": [r["figures"]["right"] for r in results], "figures": out,
        "of": key["of"], "settings": key["settings"], "config": first.get("config"), "commit": sorted({r["commit"] for r in results}), "dates": sorted({r["date"] for r in results}),
        "machines": [json.loads(m) for m in sorted({json.dumps(r["machine"]) for r in results})],
    }


def shown(figure, digits=1, times=100):
    if not figure:
        return "–"
    spread = "" if figure["sd"] is None else f" ± {times * figure['sd']:.{digits}f}"
    return f"{times * figure['mean']:.{digits}f}{spread}"


def tables(cells):
    """Markdown: accuracies side by side, and what else there is of ours."""
    by = {(c["stream"], str(c["rows"]), c["who"]): c for c in cells}
    who = [w for w in WHO if any(c["who"] == w for c in cells)]
    lines = ["| stream, rows a class | " + " | ".join(who) + " |", "|---" * (len(who) + 1) + "|"]
    for stream, k in dict.fromkeys((c["stream"], str(c["rows"])) for c in cells):
        of_row = [by.get((stream, k, w)) for w in who]
        lines.append(f"| {stream}, {k} | " + " | ".join(shown(c["figures"]["accuracy"]) if c else "" for c in of_row) + " |")
    if of_ours := [c for c in cells if c["who"] in OURS]:
        columns = {"right": ("accuracy", 1, 100), "task known": ("task_known", 1, 100), "routing": ("routing", 1, 100), "forgetting": ("forgetting", 1, 100), "refused: own": ("refused", 1, 100), "strangers": ("strangers_refused", 1, 100), "AUROC": ("auroc", 1, 100), "minutes": ("minutes", 2, 1)}
        lines += ["", "| ours | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for c in of_ours:
            lines.append(f"| {c['stream']}, {c['rows']}, {c['who']} | " + " | ".join(shown(c["figures"].get(n), d, t) for n, d, t in columns.values()) + " |")
    return "\n".join(lines)


def merged(path, cells, streams):
    """The cells of a file with these in place of those of the same name, in the order of streams, rows and names."""
    name = lambda c: (c["stream"], c["rows"], c["who"])
    old = json.loads(path.read_text())["cells"] if path.exists() else []
    both = {name(c): c for c in old} | {name(c): c for c in cells}
    place = lambda c: (streams.index(c["stream"]), (c["rows"] == "all", c["rows"] if c["rows"] != "all" else 0), WHO.index(c["who"]))
    return sorted(both.values(), key=place)


def chosen(text, known, what):
    names = [n for n in text.split(",") if n]
    if wrong := [n for n in names if n not in known]:
        sys.exit(f"{wrong[0]!r} is none of the {what}: {', '.join(known)}")
    return names


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--streams", help="comma-separated; all unless given")
    a.add_argument("--rows", default="5,10,20,all", help="training rows a class")
    a.add_argument("--seeds", type=int, default=5)
    a.add_argument("--who", default=",".join(WHO))
    a.add_argument("--data", type=pathlib.Path, default=ROOT.parent / "shared/data", help="the folder with clinc150, fewrel16 and long_sequence")
    a.add_argument("--bin", type=pathlib.Path, default=os.environ.get("CONPET_BIN"), help="a folder with conpet-train, instead of building it")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--out", type=pathlib.Path)
    a.add_argument("--resume", action="store_true")
    a.add_argument("--quick", action="store_true")
    a = a.parse_args()
    if a.quick:
        a.streams, a.rows, a.seeds = a.streams or "first-run", "5", 1
    python = compare.installed(ROOT / "build/peers", NEEDED)
    if pathlib.Path(sys.prefix).resolve() != (ROOT / "build/peers").resolve():
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(a.threads)
        os.execv(python, [python, *sys.argv])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run of ours is ended too
    import classifiers_references
    import classifiers_streams

    out = a.out or (WORK / "few-rows-quick.json" if a.quick else ROOT / "docs/results/few-rows.json")
    names = chosen(a.streams or ",".join(classifiers_streams.NAMES), classifiers_streams.NAMES, "streams")
    who = chosen(a.who, WHO, "ones compared")
    asked = a.rows.split(",")
    if wrong := [k for k in asked if k != "all" and not (k.isdigit() and int(k) > 1)]:
        sys.exit(f"--rows {wrong[0]}: it is `all`, or a number of rows from 2 on")
    a.commit, ours = classifiers_ours.git("rev-parse", "--short", "HEAD"), None
    for needed in [a.data / "clinc150/stream.json"] + ([a.bin / "conpet-train"] if a.bin else []):
        if not needed.exists():
            sys.exit(f"{needed} is not there: --data names the folder of the streams, --bin one with conpet-train")
    if any(w in OURS for w in who):
        ours = classifiers_ours.Ours(a.bin or ROOT / "target/release", bool(a.bin), BASES, WORK, a.threads, a.resume)
        for w in [w for w in who if w in OURS]:
            if flag := ours.missing(OURS[w][1]):
                print(f"{w} is left out: conpet-train stream has no {flag}", file=sys.stderr)
                who.remove(w)
    vectors = classifiers_references.Vectors(WORK / "vectors", a.threads) if "minilm-lr" in who else None
    results, cells, failed = Results(WORK / "results.jsonl", a.resume), [], []
    for name in names:
        stream = classifiers_streams.Stream(name, a.data, ROOT)
        rows = [k if k == "all" else int(k) for k in asked]
        for k in [k for k in rows if stream.is_all(k)]:
            print(f"{name} has no class with more than {max(stream.counts)} rows: {k} a class are all", file=sys.stderr)
            rows = [x for x in rows if x not in (k, "all")] + ["all"]
        found, wrong = measure(a, stream, rows, who, ours, vectors, results)
        cells += [cell(r) for r in found.values()]
        failed += wrong
    cells = merged(out, cells, classifiers_streams.NAMES)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": "python3 tests/peers/classifiers.py", "spread": "standard deviation of the sample over seeds", "cells": cells}, indent=1) + "\n")
    print(tables(cells) + "\n\n% of all test rows; ± is the standard deviation over seeds, and not there where all seeds draw the same rows or one was run.")
    if failed:
        sys.exit(f"{len(failed)} cells are missing, for these runs failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()

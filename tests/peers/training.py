#!/usr/bin/env python3
"""Training beside PEFT and torch: tokens a second and peak memory.

    python3 tests/peers/training.py BASE.gguf STREAM [--rounds 3] [--threads 2] [--rows 96] [--task NAME]

Builds conpet-train, makes a virtual environment under build/peers-torch and installs torch, transformers
and peft in it from the package index (or uses --venv). Then, round after round, each in turn and in a
process of its own trains one epoch on the same rows of the stream's task: LoRA of rank 8 on all seven
linears of each layer, a linear head on the mean of the last states, f32, AdamW, batches of 8 rows of
like length. PEFT's model has the base's shapes and random weights, and reads the ids that conpet-run
makes of the rows; only real tokens are counted, not padding. conpet-train runs at full depth
(`--trunk 0`), and with a trunk of a third of the layers, whose states are read from its cache.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import compare
from compare import ROOT

PACKAGES = ["torch==2.9.1", "transformers==5.23.0", "peft==0.21.2"]
BATCH = 8


def shapes(model):
    """The base's shapes, read by conpet-inspect."""
    done = subprocess.run([ROOT / "target/release/conpet-inspect", "gguf", model, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    known = {m["key"].split(".", 1)[1]: m["value"] for m in found["metadata"] if m["key"].startswith("llama.")}
    vocabulary = next(t["ne"][1] for t in found["tensors"] if t["name"] == "token_embd.weight")
    names = {"hidden": "embedding_length", "ffn": "feed_forward_length", "n_layer": "block_count", "n_head": "attention.head_count", "n_kv_head": "attention.head_count_kv"}
    return {ours: known[theirs] for ours, theirs in names.items()} | {"vocab": vocabulary}


def worker(job, threads):
    """PEFT, one epoch; prints JSON."""
    import peft
    import torch
    import transformers

    job = json.loads(pathlib.Path(job).read_text())
    s, rows, labels = job["shapes"], job["ids"], job["labels"]
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=s["hidden"], intermediate_size=s["ffn"], num_hidden_layers=s["n_layer"], num_attention_heads=s["n_head"],
        num_key_value_heads=s["n_kv_head"], vocab_size=s["vocab"], tie_word_embeddings=True, use_cache=False,
    )
    base = transformers.LlamaModel(config)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=linears))
    head = torch.nn.Linear(s["hidden"], max(labels) + 1)
    numbers = [p for p in model.parameters() if p.requires_grad] + list(head.parameters())
    adam = torch.optim.AdamW(numbers, lr=1e-3)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]

    def step(batch):
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in batch])
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch])
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        loss = torch.nn.functional.cross_entropy(head(mean), torch.tensor([labels[i] for i in batch]))
        adam.zero_grad()
        loss.backward()
        adam.step()

    step(batches[0])  # not measured
    begin = time.perf_counter()
    for batch in batches:
        step(batch)
    took = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"tps": sum(map(len, rows)) / took, "mb": peak / 1024}))


def ours(a, task, trunk):
    with tempfile.TemporaryDirectory() as place:
        call = [ROOT / "target/release/conpet-train", "stream", a.stream, "-m", a.model, "-b", f"{place}/x.cpb", "--order", task, "--tasks", "1"]
        call += ["--method", "per-task", "--trunk", str(trunk), "--rank", "8", "--batch", str(BATCH), "--epochs", "1", "--subset", str(a.subset)]
        call += ["--test-subset", "1", "--score", "last", "--threads", str(a.threads), "--ngram-weight", "0"]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"conpet-train failed:\n{done.stderr[-2000:]}")
        usage = json.loads(pathlib.Path(f"{place}/x.report/report.json").read_text())["methods"][0]["usage"]
        return {"tps": usage["trained_tokens"] / usage["training_seconds"], "mb": usage["peak_rss"] / 2**20, "tokens": usage["trained_tokens"]}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("stream", nargs="?")
    a.add_argument("--task", help="[default: the first folder with rows]")
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--rows", type=int, default=96)
    a.add_argument("--venv", default=ROOT / "build/peers-torch")
    a.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.worker:
        return worker(a.model, a.threads)
    build = ["cargo", "build", "--release", "-q", "-p", "conpet-trainer", "-p", "conpet-runtime", "-p", "conpet-tools"]
    subprocess.run(build, check=True, cwd=ROOT)
    python = compare.installed(a.venv, PACKAGES)
    task = a.task or sorted(p.parent.name for p in pathlib.Path(a.stream).glob("*/train.jsonl"))[0]
    rows = [json.loads(line) for line in (pathlib.Path(a.stream) / task / "train.jsonl").open()]
    kinds = sorted({r["label"] for r in rows})
    a.subset = max(1, a.rows // len(kinds))
    seen, chosen = {}, []
    for r in rows:  # as --subset does: the first ones of each label
        seen[r["label"]] = seen.get(r["label"], 0) + 1
        if seen[r["label"]] <= a.subset:
            chosen.append(r)
    shape = shapes(a.model)
    ids = []
    for r in chosen:
        done = subprocess.run([ROOT / "target/release/conpet-run", "tokenize", "-m", a.model, "--json"], input=r["text"], capture_output=True, text=True, check=True)
        ids.append(json.loads(done.stdout))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as job:
        json.dump({"shapes": shape, "ids": ids, "labels": [kinds.index(r["label"]) for r in chosen]}, job)
        job.flush()

        def peer():
            call = [python, __file__, job.name, "--worker", "--threads", str(a.threads)]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"PEFT failed:\n{done.stderr[-2000:]}")
            return json.loads(done.stdout.splitlines()[-1])

        third = shape["n_layer"] // 3
        rounds = [{"peft": peer(), "full": ours(a, task, 0), "trunk": ours(a, task, third)} for _ in range(a.rounds)]
    mean = sum(map(len, ids)) / len(ids)
    print(f"{pathlib.Path(a.model).name}, {task}: {len(ids)} rows of {mean:.0f} tokens, {a.threads} threads, {a.rounds} rounds: median (least to most)")
    spread = lambda v, d: f"{statistics.median(v):.{d}f} ({min(v):.{d}f} to {max(v):.{d}f})"
    for key, name in (("peft", "PEFT + torch"), ("full", "conpet-train, trunk 0"), ("trunk", f"conpet-train, trunk {third}")):
        of = lambda field: [r[key][field] for r in rounds]
        line = f"  {name:24} {spread(of('tps'), 0):22} tokens/s, peak {statistics.median(of('mb')):.0f} MB"
        if key != "peft":
            line += f"; {spread([r[key]['tps'] / r['peft']['tps'] for r in rounds], 2)} times PEFT, {statistics.median([r[key]['mb'] / r['peft']['mb'] for r in rounds]):.2f} of its memory"
        print(line)


if __name__ == "__main__":
    main()

"""Perplexity of a text by conpet-run and by llama.cpp, chunk for chunk the same tokens.

    python3 tests/peers/perplexity.py BASE.gguf TEXT [--chunks 40]

Uses the virtual environment that compare.py makes. First compares the tokens themselves.
"""

import argparse
import json
import math
import subprocess
import sys

import compare


def worker(model, text, chunks, context):
    """llama.cpp's perplexity, in the environment that has it; prints JSON."""
    import ctypes

    import llama_cpp as C
    import numpy

    m, ctx = compare.opened(C, model, context)
    vocab = C.llama_model_get_vocab(m)
    raw = open(text, "rb").read()
    ids = (ctypes.c_int32 * (len(raw) + 8))()
    n = C.llama_tokenize(vocab, raw, len(raw), ids, len(ids), True, False)
    tokens = list(ids[:n])
    width, total, count = C.llama_vocab_n_tokens(vocab), 0.0, 0
    for at in range(0, min(len(tokens) // context, chunks or len(tokens)) * context, context):
        part = tokens[at : at + context]
        if C.llama_vocab_get_add_bos(vocab):
            part = [C.llama_vocab_bos(vocab)] + part[1:]
        batch = C.llama_batch_init(context, 0, 1)
        batch.n_tokens = context
        for i, t in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = t, i, 1, 0
            batch.logits[i] = i >= context // 2
        C.llama_memory_clear(C.llama_get_memory(ctx), True)
        if C.llama_decode(ctx, batch) != 0:
            sys.exit("decoding failed")
        for i in range(context // 2, context - 1):
            row = numpy.ctypeslib.as_array(C.llama_get_logits_ith(ctx, i), (width,)).astype(numpy.float64)
            top = row.max()
            total += math.log(numpy.exp(row - top).sum()) + top - row[part[i + 1]]
            count += 1
        C.llama_batch_free(batch)
    print(json.dumps({"perplexity": math.exp(total / count), "tokens": count, "ids": tokens, "bos": int(C.llama_vocab_get_add_bos(vocab))}))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("text")
    a.add_argument("--chunks", type=int, default=40)
    a.add_argument("--context", type=int, default=512)
    a.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.worker:
        return worker(a.model, a.text, a.chunks, a.context)
    subprocess.run(["cargo", "build", "--release", "-q", "-p", "conpet-runtime"], check=True, cwd=compare.ROOT)
    python = compare.environment(["llama"])
    call = [python, __file__, a.model, a.text, "--chunks", str(a.chunks), "--context", str(a.context), "--worker"]
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    theirs = json.loads(done.stdout.splitlines()[-1])
    print(f"llama.cpp  {theirs['perplexity']:.4f}  ({theirs['tokens']} tokens, {len(theirs['ids'])} in the text)")
    run = compare.ROOT / "target/release/conpet-run"
    theirs["ids"] = theirs["ids"][theirs["bos"] :]
    ids = json.loads(subprocess.run([run, "tokenize", "-m", a.model, "-f", a.text, "--json"], check=True, capture_output=True, text=True).stdout)
    same = next((i for i, (x, y) in enumerate(zip(ids, theirs["ids"])) if x != y), min(len(ids), len(theirs["ids"])))
    print("tokens equal" if ids == theirs["ids"] else f"tokens differ from number {same} on: {ids[same:same + 8]}, llama.cpp {theirs['ids'][same:same + 8]}")
    for name, flags in [("conpet", []), ("conpet --exact", ["--exact"])]:
        call = [run, "perplexity", "-m", a.model, "-f", a.text, "--chunks", str(a.chunks), "-c", str(a.context), "--json", *flags]
        ours = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout)
        ratio = ours["perplexity"] / theirs["perplexity"] - 1
        print(f"{name:15}  {ours['perplexity']:.4f}  ({ours['tokens']} tokens)  {100 * ratio:+.3f} %")


if __name__ == "__main__":
    main()

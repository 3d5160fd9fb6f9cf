"""Bases quantized here and by llama.cpp: the same bytes.

    python3 tests/peers/quantize.py [--python PYTHON] [BASE.gguf ...]

Writes a random base of the llama family in F32 (or takes those given, in F16 or F32), and quantizes it to every type
with `conpet-inspect quantize` and with llama.cpp's llama_model_quantize. Every tensor must have the same type and the
same bytes. Uses compare.py's environment, which compiles llama-cpp-python, unless --python names an interpreter that
has it.
"""

import argparse
import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile

import compare

# llama.cpp's numbers of file types.
TYPES = dict(
    f16=1, bf16=32, q8_0=7, q4_0=2, q4_1=3, q5_0=8, q5_1=9, q2_k=10, q3_k_s=11, q3_k_m=12, q3_k_l=13,
    q4_k_s=14, q4_k_m=15, q5_k_s=16, q5_k_m=17, q6_k=18,
)


def header(path):
    """Where each tensor of a GGUF lies, and its type; read here, with nothing but the format's description."""
    import struct

    f = open(path, "rb")
    number = lambda fmt: struct.unpack("<" + fmt, f.read(struct.calcsize("<" + fmt)))[0]
    text = lambda: f.read(number("Q")).decode("utf-8", "replace")
    assert f.read(4) == b"GGUF" and number("I") == 3
    tensors, keys = number("Q"), number("Q")
    plain = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, n = number("I"), number("Q")
            return [value(inner) for _ in range(n)]
        return number(plain[kind])

    known = {}
    for _ in range(keys):
        key = text()
        known[key] = value(number("I"))
    out = {}
    for _ in range(tensors):
        name, dims = text(), number("I")
        sizes = [number("Q") for _ in range(dims)]
        out[name] = [number("I"), sizes, number("Q")]
    start = -(-f.tell() // 32) * 32
    for entry in out.values():
        entry[2] += start
    return known, out


def tensor_bytes(path):
    known, tensors = header(path)
    data = open(path, "rb").read()
    order = sorted(tensors, key=lambda n: tensors[n][2])
    ends = [tensors[n][2] for n in order[1:]] + [len(data)]
    return known, {n: (tensors[n][0], tensors[n][1], data[tensors[n][2] : end]) for n, end in zip(order, ends)}


def random_base(path):
    """A llama with layers of every place that mixtures know, whose numbers have outliers, zeros and constants."""
    import numpy
    import struct

    rng = numpy.random.default_rng(5)
    hidden, layers, heads, kv, ffn, vocab = 256, 16, 8, 2, 512, 300
    out, tensors, keys = bytearray(), [], []
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    u32 = lambda k, v: keys.append(text(k) + struct.pack("<II", 4, v))
    f32 = lambda k, v: keys.append(text(k) + struct.pack("<If", 6, v))
    word = lambda k, v: keys.append(text(k) + struct.pack("<I", 8) + text(v))
    array = lambda k, kind, items: keys.append(text(k) + struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items))
    word("general.architecture", "llama")
    u32("general.file_type", 0)
    for k, v in dict(block_count=layers, context_length=128, embedding_length=hidden, feed_forward_length=ffn, vocab_size=vocab).items():
        u32("llama." + k, v)
    u32("llama.attention.head_count", heads)
    u32("llama.attention.head_count_kv", kv)
    u32("llama.rope.dimension_count", hidden // heads)
    f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    word("tokenizer.ggml.model", "gpt2")
    word("tokenizer.ggml.pre", "smollm")
    array("tokenizer.ggml.tokens", 8, [text(f"t{i}") for i in range(vocab)])
    array("tokenizer.ggml.token_type", 5, [struct.pack("<i", 1)] * vocab)
    array("tokenizer.ggml.merges", 8, [text("t 1")])

    def add(name, *shape):
        x = rng.standard_normal(shape, numpy.float32) * 0.05
        if len(shape) == 2:
            x[0, :64] = 0.0
            x[1] = 0.01
            x[2] *= rng.choice([1.0, 20.0], x[2].shape)
            x[3] = numpy.abs(x[3])
            x[4] = -numpy.abs(x[4]) * 1e-6
        tensors.append((name, shape[::-1], x.tobytes()))

    add("token_embd.weight", vocab, hidden)
    add("output.weight", vocab, hidden)
    add("output_norm.weight", hidden)
    for l in range(layers):
        b = f"blk.{l}."
        for name, rows, cols in [("attn_q", hidden, hidden), ("attn_k", hidden // heads * kv, hidden), ("attn_v", hidden // heads * kv, hidden), ("attn_output", hidden, hidden), ("ffn_gate", ffn, hidden), ("ffn_up", ffn, hidden), ("ffn_down", hidden, ffn)]:
            add(b + name + ".weight", rows, cols)
        add(b + "attn_norm.weight", hidden)
        add(b + "ffn_norm.weight", hidden)
    out += b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys)
    at = 0
    for name, ne, data in tensors:
        out += text(name) + struct.pack("<I", len(ne)) + b"".join(struct.pack("<Q", n) for n in ne) + struct.pack("<IQ", 0, at)
        at += -(-len(data) // 32) * 32
    out += bytes(-len(out) % 32)
    for _, _, data in tensors:
        out += data + bytes(-len(data) % 32)
    path.write_bytes(out)


def worker(source, target, kind):
    """llama.cpp's quantizer, in a process of its own."""
    import llama_cpp as C

    C.llama_backend_init()
    p = C.llama_model_quantize_default_params()
    p.ftype = TYPES[kind]
    p.nthread = 2
    sys.exit(C.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(p)))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("bases", nargs="*", type=pathlib.Path)
    a.add_argument("--python")
    a.add_argument("--program", type=pathlib.Path)
    a.add_argument("--types", nargs="*", default=list(TYPES), choices=TYPES)
    a.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    a.add_argument("--random", type=pathlib.Path, help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.worker:
        worker(*a.worker)
    if a.random:
        return random_base(a.random)
    python = a.python or compare.environment(["llama"])
    if not a.program:
        subprocess.run(["cargo", "build", "-q", "-p", "conpet-tools"], cwd=compare.ROOT, check=True)
        a.program = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", compare.ROOT / "target")) / "debug" / "conpet-inspect"
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        bases = a.bases
        if not bases:
            bases = [place / "random.gguf"]
            subprocess.run([python, __file__, "--random", bases[0]], check=True)
        for base in bases:
            for kind in a.types:
                ours, theirs = place / "ours.gguf", place / "theirs.gguf"
                ours.unlink(missing_ok=True)
                subprocess.run([python, __file__, "--worker", base, theirs, kind], check=True, capture_output=True)
                subprocess.run([a.program, "quantize", base, ours, kind], check=True, capture_output=True)
                (x, mine), (y, other) = tensor_bytes(ours), tensor_bytes(theirs)
                wrong = [] if x["general.file_type"] == y["general.file_type"] else ["general.file_type"]
                for name in sorted(set(mine) | set(other)):
                    m, o = mine.get(name), other.get(name)
                    if m is None or o is None or m[:2] != o[:2]:
                        wrong.append(f"{name}: type {m and m[0]} here, {o and o[0]} there")
                    elif m[2] != o[2]:
                        n = sum(i != j for i, j in zip(m[2], o[2]))
                        wrong.append(f"{name}: {n} of {len(o[2])} bytes differ")
                print(f"{base.name} {kind:7} {'differs' if wrong else 'the same bytes'}")
                for line in wrong[:8]:
                    print(f"    {line}")
                failed += bool(wrong)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""Bases of well-known shapes with random weights, to measure speed on: what is computed does not matter.

    python3 tests/peers/shapes.py SmolLM2.gguf FOLDER [--shape qwen2.5-0.5b] [--types Q8_0 Q4_0 Q4_K ...]

The tokenizer is that of the GGUF given, padded to the shape's vocabulary. The F16 file is written
here; the others are made of it by ik_llama.cpp's llama-quantize. Uses compare.py's environment.
"""

import argparse
import pathlib
import subprocess
import sys

import compare

# hidden, layers, heads, key/value heads, feed-forward, vocabulary
SHAPES = {
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936),
    "llama-3.2-1b": (2048, 16, 32, 8, 8192, 128256),
}


def write(shape, source, path):
    """The F16 file, in the environment that has the package gguf."""
    import gguf
    import numpy

    hidden, layers, heads, kv, ffn, vocab = SHAPES[shape]
    known = gguf.GGUFReader(source).fields
    text = lambda key: [bytes(known[key].parts[i]) for i in known[key].data]
    tokens = text("tokenizer.ggml.tokens")
    kinds = [int(known["tokenizer.ggml.token_type"].parts[i][0]) for i in known["tokenizer.ggml.token_type"].data]
    tokens += [f"[pad{i}]".encode() for i in range(vocab - len(tokens))]
    kinds += [5] * (vocab - len(kinds))
    w = gguf.GGUFWriter(path, "llama")
    w.add_name(f"{shape} shape, random")
    w.add_block_count(layers)
    w.add_context_length(4096)
    w.add_embedding_length(hidden)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(vocab)
    w.add_rope_dimension_count(hidden // heads)
    w.add_file_type(1)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(text("tokenizer.ggml.merges"))
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    rng = numpy.random.default_rng(1)
    matrix = lambda rows, cols: (rng.standard_normal((rows, cols), numpy.float32) / cols**0.5).astype(numpy.float16)
    w.add_tensor("token_embd.weight", matrix(vocab, hidden))
    for i in range(layers):
        width = hidden // heads * kv
        for name, rows, cols in [("attn_q", hidden, hidden), ("attn_k", width, hidden), ("attn_v", width, hidden), ("attn_output", hidden, hidden), ("ffn_gate", ffn, hidden), ("ffn_up", ffn, hidden), ("ffn_down", hidden, ffn)]:
            w.add_tensor(f"blk.{i}.{name}.weight", matrix(rows, cols))
        for name in ["attn_norm", "ffn_norm"]:
            w.add_tensor(f"blk.{i}.{name}.weight", numpy.ones(hidden, numpy.float32))
    w.add_tensor("output_norm.weight", numpy.ones(hidden, numpy.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("source")
    a.add_argument("folder", type=pathlib.Path)
    a.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    a.add_argument("--types", nargs="*", default=["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
    a.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = a.parse_args()
    whole = a.folder / f"{a.shape}.F16.gguf"
    if a.worker:
        return write(a.shape, a.source, whole)
    a.folder.mkdir(parents=True, exist_ok=True)
    python = compare.environment(["ik"])
    if not whole.exists():
        subprocess.run([python, "-m", "pip", "install", "-q", "gguf==0.19.0"], check=True, stdout=sys.stderr)
        subprocess.run([python, __file__, a.source, a.folder, "--shape", a.shape, "--worker"], check=True)
    for name in a.types:
        path = a.folder / f"{a.shape}.{name}.gguf"
        if not path.exists():
            tool = next(pathlib.Path(python).parents[1].glob("lib/*/site-packages/ik_llama_cpp/bin/llama-quantize"))
            kind = {"Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "Q3_K": "Q3_K_S"}.get(name, name)
            subprocess.run([tool, "--pure", whole, path, kind, "1"], check=True, capture_output=True)
        print(path)


if __name__ == "__main__":
    main()

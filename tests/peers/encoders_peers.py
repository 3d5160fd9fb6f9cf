"""The other side of encoders.py, run by it in the peers' virtual environment:

    encoders_peers.py reference|words|onnx-f32[-fused]|onnx-int8[-fused]|llama-f32|llama-f16|llama-q8_0 MODEL WORK THREADS

`reference` compares the vectors that conpet wrote into WORK with a forward pass in numpy. `words` picks from the texts
on standard input the words that are one token. The others load an engine, and answer each line of standard input, JSON
with groups of texts, with a line: the seconds it took to tokenize and embed all groups, and the vectors of the last
one if they are asked for.
"""

import json
import os
import pathlib
import sys
import time

import numpy
import tokenizers

HEADS, LAYERS, EPS = 12, 6, 1e-12
LINEARS = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"]


def tokenizer(model):
    """The model's own, without the padding and the limit of its file."""
    t = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    t.no_padding()
    t.no_truncation()
    return t


def weights(model):
    from safetensors.numpy import load_file

    return load_file(model / "model.safetensors")


def unit(v):
    return v / numpy.linalg.norm(v, axis=-1, keepdims=True)


def forward(w, ids):
    """The last states [tokens, hidden] of BERT (Devlin et al. 2019), in the precision of the weights."""
    from scipy.special import erf, softmax

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + EPS) * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    e = "embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.position_embeddings.weight"][: len(ids)] + w[f"{e}.token_type_embeddings.weight"][0]
    x = norm(x, e)
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        linear = lambda x, name: x @ w[f"{at}.{name}.weight"].T + w[f"{at}.{name}.bias"]
        q, k, v = (linear(x, name).reshape(len(ids), HEADS, -1).swapaxes(0, 1) for name in LINEARS[:3])
        a = softmax(q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5, axis=-1) @ v
        x = norm(x + linear(a.swapaxes(0, 1).reshape(len(ids), -1), LINEARS[3]), f"{at}.attention.output")
        h = linear(x, LINEARS[4])
        x = norm(x + linear(h * 0.5 * (1 + erf(h / 2**0.5)), LINEARS[5]), f"{at}.output")
    return x


def reference(model, work):
    """Cosines of the vectors in WORK with those of the reference."""
    w = {name: v.astype(numpy.float64) for name, v in weights(model).items() if v.dtype == numpy.float32}
    t = tokenizer(model)
    texts = [json.loads(line)["text"] for line in (work / "texts.jsonl").read_text().splitlines()]
    ids = [t.encode(text).ids for text in texts]
    want = unit(numpy.stack([forward(w, i).mean(0) for i in ids]))
    out = {"tokens": sum(map(len, ids)), "longest": max(map(len, ids))}
    for path in sorted(work.glob("vectors-*.jsonl")):
        got = unit(numpy.array([json.loads(line)["embedding"] for line in path.read_text().splitlines()]))
        cosine = (got * want).sum(1)
        out[path.stem.removeprefix("vectors-")] = {"least": cosine.min(), "mean": cosine.mean(), "worst": int(cosine.argmin()), "below": [i for i, c in enumerate(cosine) if c < 0.999]}
    return out


def words(model):
    t = tokenizer(model)
    all_of_them = sorted({word for text in json.load(sys.stdin) for word in text.lower().split() if word.isalpha()})
    return [word for word in all_of_them if len(t.encode(word).ids) == 3]


def onnx_graph(model, path):
    """Writes the model as the exporters do, so that fusions find what they look for: ids and mask in, means out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    w, nodes, inits = weights(model), [], {}

    def const(name, value):
        inits[name] = numpy_helper.from_array(numpy.ascontiguousarray(value), name)
        return name

    def op(kind, *inputs, **attributes):
        name = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    f32 = lambda v: numpy.float32(v)
    ints = lambda *v: numpy.array(v, numpy.int64)

    def norm(x, name):
        return op("LayerNormalization", x, const(f"{name}.w", w[f"{name}.LayerNorm.weight"]), const(f"{name}.b", w[f"{name}.LayerNorm.bias"]), axis=-1, epsilon=EPS)

    e = "embeddings"
    zero, one, two = (const(f"the {i}", ints(i)) for i in range(3))
    places = op("Slice", const("places", w[f"{e}.position_embeddings.weight"]), zero, op("Gather", op("Shape", "ids"), one), zero)
    x = op("Add", op("Gather", const("words", w[f"{e}.word_embeddings.weight"]), "ids"), const("kind", w[f"{e}.token_type_embeddings.weight"][0]))
    x = norm(op("Add", x, places), e)
    wide = op("Cast", op("Unsqueeze", op("Unsqueeze", "mask", one), two), to=TensorProto.FLOAT)
    hide = op("Mul", op("Sub", const("1.0", f32(1)), wide), const("least", f32(-10000)))
    width = w[f"{e}.word_embeddings.weight"].shape[1]
    split, whole = const("split", ints(0, 0, HEADS, width // HEADS)), const("whole", ints(0, 0, width))
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"

        def linear(x, name):
            product = op("MatMul", x, const(f"{at}.{name}.w", w[f"{at}.{name}.weight"].T))
            return op("Add", product, const(f"{at}.{name}.b", w[f"{at}.{name}.bias"]))

        q, k, v = (op("Reshape", linear(x, name), split) for name in LINEARS[:3])
        q, k, v = op("Transpose", q, perm=[0, 2, 1, 3]), op("Transpose", k, perm=[0, 2, 3, 1]), op("Transpose", v, perm=[0, 2, 1, 3])
        scores = op("Div", op("MatMul", q, k), const("scale", f32((width // HEADS) ** 0.5)))
        a = op("MatMul", op("Softmax", op("Add", scores, hide), axis=-1), v)
        a = linear(op("Reshape", op("Transpose", a, perm=[0, 2, 1, 3]), whole), LINEARS[3])
        x = norm(op("Add", a, x), f"{at}.attention.output")
        h = linear(x, LINEARS[4])
        gelu = op("Mul", op("Mul", h, op("Add", op("Erf", op("Div", h, const("root", f32(2**0.5)))), "1.0")), const("half", f32(0.5)))
        x = norm(op("Add", linear(gelu, LINEARS[5]), x), f"{at}.output")
    weight = op("Cast", op("Unsqueeze", "mask", const("axis-1", ints(-1))), to=TensorProto.FLOAT)
    sums = op("ReduceSum", op("Mul", x, weight), one, keepdims=0)
    nodes.append(helper.make_node("Div", [sums, op("ReduceSum", weight, one, keepdims=0)], ["means"]))
    feed = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"]) for n in ("ids", "mask")]
    out = [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", width])]
    graph = helper.make_graph(nodes, "minilm", feed, out, list(inits.values()))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    onnx.save(made, path)


def onnx_file(name, model, work):
    """The graph, with BERT's fusions (`-fused`) and dynamically quantized (`-int8`) as its name says."""
    plain, fused = work / "onnx-f32.onnx", work / "onnx-f32-fused.onnx"
    if not plain.exists():
        onnx_graph(model, plain)
    if name.endswith("fused") and not fused.exists():
        from onnxruntime.transformers import optimizer

        made = optimizer.optimize_model(str(plain), model_type="bert", num_heads=HEADS, hidden_size=384, opt_level=0)
        print(f"onnxruntime fuses {({k: v for k, v in made.get_fused_operator_statistics().items() if v})}", file=sys.stderr)
        made.save_model_to_file(str(fused))
    path = work / f"{name}.onnx"
    if not path.exists():
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        source = fused if name.endswith("fused") else plain
        # The fused operators' outputs have no type that the quantizer could infer.
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    return path


def onnx_engine(name, model, work, threads, longest=None):
    """Tokenizes with the tokenizers package; texts of a group are padded to its longest, and cut after `longest`
    tokens if that is given."""
    path = onnx_file(name, model, work)  # made by another process, lest its memory be counted
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    t = tokenizer(model)
    t.enable_padding()
    if longest:
        t.enable_truncation(longest)

    def embed(texts):
        rows = t.encode_batch(texts)
        feed = {"ids": numpy.array([r.ids for r in rows]), "mask": numpy.array([r.attention_mask for r in rows])}
        return unit(session.run(["means"], feed)[0])

    return embed


class Llama:
    """llama.cpp with mean pooling; a group is cut into batches of the size that is fastest for its kind."""

    SIZES = [64, 128, 256, 512]

    def __init__(self, path, threads):
        import ctypes

        import llama_cpp as C

        self.C, self.ctypes = C, ctypes
        self.quiet = C.llama_log_callback(lambda *_: None)
        C.llama_log_set(self.quiet, None)
        C.llama_backend_init()
        mp = C.llama_model_default_params()
        mp.n_gpu_layers = 0
        self.model = C.llama_model_load_from_file(os.fsencode(path), mp)
        cp = C.llama_context_default_params()
        cp.n_ctx = cp.n_batch = cp.n_ubatch = max(self.SIZES)
        cp.n_seq_max = 64
        cp.n_threads = cp.n_threads_batch = threads
        cp.embeddings, cp.pooling_type = True, C.LLAMA_POOLING_TYPE_MEAN
        self.ctx = C.llama_init_from_model(self.model, cp)
        self.vocab, self.width = C.llama_model_get_vocab(self.model), C.llama_model_n_embd(self.model)
        self.best = {}

    def ids(self, text):
        raw = text.encode()
        out = (self.ctypes.c_int32 * 512)()
        n = self.C.llama_tokenize(self.vocab, raw, len(raw), out, 512, True, False)
        return numpy.ctypeslib.as_array(out)[:n].copy()

    def batch(self, rows):
        """Vectors of some texts' tokens, computed together."""
        C, ctypes = self.C, self.ctypes
        tokens = numpy.concatenate(rows).astype(numpy.int32)
        n = len(tokens)
        places = numpy.concatenate([numpy.arange(len(r), dtype=numpy.int32) for r in rows])
        which = numpy.repeat(numpy.arange(len(rows), dtype=numpy.int32), [len(r) for r in rows])
        one, wanted = numpy.ones(n, numpy.int32), numpy.ones(n, numpy.int8)
        at = which.ctypes.data + 4 * numpy.arange(n, dtype=numpy.uint64)
        pointer = lambda a, kind: a.ctypes.data_as(ctypes.POINTER(kind))
        of = ctypes.POINTER(ctypes.c_int32)
        b = C.llama_batch(n, pointer(tokens, ctypes.c_int32), None, pointer(places, ctypes.c_int32), pointer(one, ctypes.c_int32), pointer(at, of), pointer(wanted, ctypes.c_int8))
        if C.llama_encode(self.ctx, b) != 0:
            sys.exit("llama.cpp failed")
        return [numpy.ctypeslib.as_array(C.llama_get_embeddings_seq(self.ctx, i), (self.width,)).copy() for i in range(len(rows))]

    def cut(self, texts, size):
        rows, out = [self.ids(t) for t in texts], []
        while rows:
            n = 1
            while n < len(rows) and sum(map(len, rows[: n + 1])) <= size:
                n += 1
            out += self.batch(rows[:n])
            rows = rows[n:]
        return unit(numpy.stack(out))

    def embed(self, texts):
        kind = (len(texts), len(self.ids(texts[0])))
        if kind[0] == 1:
            return self.cut(texts, max(self.SIZES))
        if kind not in self.best:
            self.best[kind] = min(self.SIZES, key=lambda size: self.timed(texts, size))
            print(f"llama.cpp: {kind[0]} texts of {kind[1]} tokens are fastest in batches of {self.best[kind]}", file=sys.stderr)
        return self.cut(texts, self.best[kind])

    def timed(self, texts, size):
        begin = time.perf_counter()
        self.cut(texts, size)
        return time.perf_counter() - begin


def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1])


def serve(load):
    """Says what the process holds, loads an engine, and answers lines."""
    out = os.fdopen(os.dup(1), "w")
    print(json.dumps({"before_kb": anonymous()}), file=out, flush=True)
    embed = load()
    for line in sys.stdin:
        asked, begin = json.loads(line), time.perf_counter()
        for group in asked["groups"]:
            vectors = embed(group)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "vectors": vectors.tolist() if asked["vectors"] else []}), file=out, flush=True)


def main():
    what, model, work, threads = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), int(sys.argv[4])
    if what == "reference":
        print(json.dumps(reference(model, work)))
    elif what == "words":
        print(json.dumps(words(model)))
    elif what == "graph":
        [onnx_file(f"onnx-{kind}", model, work) for kind in ("f32-fused", "int8", "int8-fused")]
    elif what.startswith("onnx"):
        serve(lambda: onnx_engine(what, model, work, threads))
    else:
        serve(lambda: Llama(work / f"minilm-{what.removeprefix('llama-')}.gguf", threads).embed)


if __name__ == "__main__":
    main()

"""The label streams that classifiers.py compares on, and which of their rows a run is shown.

A task is a dictionary of its splits, each a list of (text, label). Labels of two tasks are two classes even if they
are spelled the same. Training and test rows are used, and no validation split: whoever is compared sees the drawn
rows and nothing else.
"""

import hashlib
import json
import re
import shutil

import numpy

# Most training rows of a class that a draw has of a stream, where that is fewer than there are.
MOST = {"topics": 200}
NAMES = ["clinc150", "fewrel16", "first-run", "topics", "relations-plain"]


def objects(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def rows(path):
    """Pairs of text and label of a file of rows."""
    return [(r["text"], r["label"]) for r in objects(path)]


def splits(folder):
    return {split: rows(folder / f"{split}.jsonl") for split in ("train", "test")}


def listed(folder):
    """Names of a stream's tasks, in its order."""
    tasks = json.loads((folder / "stream.json").read_text())["tasks"]
    return [t if isinstance(t, str) else t["name"] for t in tasks]


def bare(prompt):
    """The text itself: without the question before it, the names of its fields, and `Answer:` after it."""
    found = re.fullmatch(r"[^\n]+\n\n(?:Title: ([^\n]*)\n)?Text: (.*)\n\nAnswer:", prompt, re.S)
    if not found:
        raise ValueError(f"this prompt has another form than the stream's: {prompt!r}")
    return "\n".join(part.strip() for part in found.groups() if part and part.strip())


def plain(text):
    """A sentence of a relation without what marks its two ends and without the template after it."""
    found = re.fullmatch(r"(.*) In this sentence, .*\[MASK\].*", text, re.S)
    if not found:
        raise ValueError(f"this row has no template at its end: {text!r}")
    return " ".join(re.sub(r"</?[ht]>", " ", found[1]).split())


def topics(folder):
    """News, reviews and sentences, of prompts that are answered by the name of a class."""
    out = {}
    for task in ["agnews", "amazon", "sst2"]:
        out[task] = {}
        for split in ("train", "test"):
            out[task][split] = [(bare(r["prompt"]), r["completion"]) for r in objects(folder / task / f"{split}.jsonl")]
    return out


def relations(folder):
    """fewrel16 as plain sentences, two of its tasks joined into one: four tasks of four relations. Sentences differ in
    their marks alone in some rows; of the training rows those are left out that a test row or an earlier one equals."""
    names, out = listed(folder), {}
    parts = {name: {split: [(plain(text), label) for text, label in found] for split, found in splits(folder / name).items()} for name in names}
    seen = {text for p in parts.values() for text, _ in p["test"]}
    for p in parts.values():
        p["train"] = [(text, label) for text, label in p["train"] if not (text in seen or seen.add(text))]
    for a, b in zip(names[::2], names[1::2]):
        out[f"{a}-{b}"] = {split: parts[a][split] + parts[b][split] for split in ("train", "test")}
    return out


def load(name, data, root):
    """Tasks of a stream, in order, and a file of inputs of no task or None."""
    if name == "topics":
        return topics(data / "long_sequence"), None
    if name == "relations-plain":
        return relations(data / "fewrel16"), None
    folder = root / "examples/stream" if name == "first-run" else data / name
    tasks = [t for t in listed(folder) if "label" in objects(folder / t / "train.jsonl")[0]]
    strangers = folder / "out_of_scope/test.jsonl"
    return {t: splits(folder / t) for t in tasks}, strangers if strangers.exists() else None


class Stream:
    def __init__(self, name, data, root):
        self.name, self.most = name, MOST.get(name)
        self.tasks, self.strangers = load(name, data, root)
        self.counts = [len(rows) for t in self.tasks for rows in self.classes(t).values()]

    def classes(self, task):
        """Training rows of each class of a task, in the order of the classes' names."""
        out = {}
        for text, label in self.tasks[task]["train"]:
            out.setdefault(label, []).append((text, label))
        return dict(sorted(out.items()))

    def test(self):
        """All test rows, each with its class (task and label)."""
        return [(text, (task, label)) for task, t in self.tasks.items() for text, label in t["test"]]

    def is_all(self, k):
        """Whether `k` rows a class are all that there are."""
        return k != "all" and k >= min(max(self.counts), self.most or max(self.counts))

    def one_draw(self, k):
        """Whether each seed draws the same rows."""
        return k == "all" and (not self.most or max(self.counts) <= self.most)

    def draw(self, k, seed):
        """Rows of each task: the first `k` of each class in an order drawn with this seed. More rows a class are
        these and others. A class that has fewer gives all it has."""
        rng, out = numpy.random.default_rng(seed), {}
        for task in self.tasks:
            out[task] = []
            for found in self.classes(task).values():
                order = rng.permutation(len(found))[: self.most if k == "all" else k]
                out[task] += [found[i] for i in order]
        return out

    def digest(self, drawn):
        """Of the drawn rows, the test rows and the inputs of no task."""
        strangers = self.strangers.read_text() if self.strangers else None
        text = json.dumps([drawn, self.test(), strangers], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, drawn, folder, valid):
        """The stream as conpet-train reads it, with `valid` of each class's drawn rows held out of them to validate
        on; without a validation file if that is 0."""
        shutil.rmtree(folder, ignore_errors=True)
        for task, rows in drawn.items():
            train, held, count = [], [], {}
            for row in reversed(rows):
                count[row[1]] = count.get(row[1], 0) + 1
                (held if count[row[1]] <= valid else train).append(row)
            (folder / task).mkdir(parents=True)
            files = {"train": train[::-1], "valid": held[::-1], "test": self.tasks[task]["test"]}
            for split, rows in files.items():
                if rows:
                    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
                    (folder / task / f"{split}.jsonl").write_text("".join(lines))
        (folder / "stream.json").write_text(json.dumps({"tasks": list(drawn)}) + "\n")
        if self.strangers:
            (folder / "out_of_scope").mkdir()
            shutil.copy(self.strangers, folder / "out_of_scope/test.jsonl")

"""What a user would fit on labelled rows without us, for classifiers.py: each is fitted on all classes at once.

A function here gets training and test rows, pairs of a text and its class, and returns the classes that it gives the
test rows.
"""

import fcntl
import hashlib
import os
import sys
import warnings

import numpy
from scipy.sparse import hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import encoders
import encoders_peers

# A fit that stops before it has converged is no reference.
warnings.simplefilter("error", ConvergenceWarning)
WIDTH = 384
SETTINGS = {
    "svm": "TfidfVectorizer(ngram_range=(1, 2)) beside TfidfVectorizer(analyzer='char_wb', ngram_range=(2, 5)), both sublinear_tf; LinearSVC(C=1, max_iter=10000)",
    "minilm-lr": f"{encoders.PACKAGE} in onnxruntime, F32, the first 256 tokens, mean of the last states at unit length; LogisticRegression(C=10, max_iter=10000)",
}


def numbered(train, test):
    """Classes as numbers, which scikit-learn takes where it does not take pairs of a task and a label."""
    names = sorted({c for _, c in train})
    missing = {c for _, c in test} - set(names)
    if missing:
        sys.exit(f"test rows have classes that no training row has: {sorted(missing)}")
    return names, numpy.array([names.index(c) for _, c in train])


def svm(train, test, seed):
    """A linear SVM on weighted counts of words and of pieces of words."""
    names, y = numbered(train, test)
    counts = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)]
    x = hstack([c.fit_transform([text for text, _ in train]) for c in counts]).tocsr()
    fitted = LinearSVC(C=1, max_iter=10000, random_state=seed).fit(x, y)
    asked = hstack([c.transform([text for text, _ in test]) for c in counts]).tocsr()
    return [names[i] for i in fitted.predict(asked)]


class Vectors:
    """MiniLM's vectors of texts, which are computed once and kept in `folder`: numbers in one file, and a digest of
    the text of each in another."""

    def __init__(self, folder, threads):
        folder.mkdir(parents=True, exist_ok=True)
        self.numbers, self.names, self.threads = folder / f"{encoders.PACKAGE}.f32", folder / f"{encoders.PACKAGE}.txt", threads
        self.embed = None
        self.lock = open(folder / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another run uses the vectors in {folder}: wait for it, or leave out minilm-lr")
        self.numbers.touch()
        self.names.touch()
        # A run that was killed while it wrote may have left a part of the last ones.
        names = [n for n in self.names.read_text().split("\n") if len(n) == 64]
        have = min(len(names), os.path.getsize(self.numbers) // (4 * WIDTH))
        stored = numpy.fromfile(self.numbers, numpy.float32, have * WIDTH).reshape(have, WIDTH)
        self.known = dict(zip(names, stored))
        os.truncate(self.numbers, 4 * WIDTH * have)
        os.truncate(self.names, 65 * have)

    @staticmethod
    def name(text):
        return hashlib.sha256(text.encode()).hexdigest()

    def of(self, texts):
        new = {self.name(t): t for t in texts if self.name(t) not in self.known}
        if new:
            self.compute(sorted(new.items(), key=lambda item: len(item[1])))
        return numpy.stack([self.known[self.name(t)] for t in texts])

    def compute(self, new):
        """Texts of like length together, so that little is padded."""
        if not self.embed:
            encoders.fetch_model(sys.executable)
            self.embed = encoders_peers.onnx_engine("onnx-f32", encoders.MODEL, encoders.WORK, self.threads, longest=256)
        print(f"  MiniLM's vectors of {len(new)} texts", file=sys.stderr)
        for at in range(0, len(new), 32):
            part = new[at : at + 32]
            got = self.embed([text for _, text in part]).astype(numpy.float32)
            with open(self.numbers, "ab") as numbers, open(self.names, "a") as names:
                numbers.write(got.tobytes())
                names.write("".join(f"{name}\n" for name, _ in part))
            self.known |= {name: v for (name, _), v in zip(part, got)}


def minilm_lr(train, test, vectors):
    """Logistic regression on an encoder's vectors."""
    names, y = numbered(train, test)
    fitted = LogisticRegression(C=10, max_iter=10000).fit(vectors.of([text for text, _ in train]), y)
    return [names[i] for i in fitted.predict(vectors.of([text for text, _ in test]))]

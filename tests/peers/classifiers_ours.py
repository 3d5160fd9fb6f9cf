"""conpet-train on a stream of labelled rows, for classifiers.py."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import compare

ROOT = compare.ROOT
# What the programs are built of.
SOURCES = ["formats", "runtime", "trainer", "tools", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"]


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:12]


class Failed(Exception):
    pass


class Ours:
    """The programs of a folder: those that are built here, unless `given` says that they come from elsewhere."""

    def __init__(self, folder, given, bases, work, threads, resume):
        self.train, self.bases, self.work, self.threads, self.resume = folder / "conpet-train", bases, work, threads, resume
        if given:
            self.commit = f"program {digest(self.train)}"
        else:
            subprocess.run(["cargo", "build", "--release", "-q", "-p", "conpet-trainer"], check=True, cwd=ROOT)
            # Results stay good while only documents and scripts change.
            self.commit = git("log", "-1", "--format=%h", "--", *SOURCES)
            if not self.commit or git("status", "--porcelain", "--", *SOURCES):
                self.commit += f"+{digest(self.train)}"
        self.help = subprocess.run([self.train, "stream", "--help"], check=True, capture_output=True, text=True).stdout
        self.digests, self.can_do_without_valid = {}, None

    def missing(self, arguments):
        """The first flag among these that conpet-train does not have."""
        return next((a for a in arguments if a.startswith("--") and f"{a} " not in self.help.replace("\n", " ")), None)

    def base(self, name):
        """The base of this name, which the first run fetches if it is not there; and a digest of it."""
        path = ROOT / self.bases[name]
        if not path.exists():
            subprocess.run([ROOT / "examples/first-run.sh", "--base", name], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        if name not in self.digests:
            self.digests[name] = digest(path)
        return path, self.digests[name]

    def held_out(self, wanted):
        """Rows a class to validate on: `wanted`, or by itself (None) none where conpet-train accepts that, else one."""
        if wanted is not None:
            return wanted
        if self.can_do_without_valid is None:
            with tempfile.TemporaryDirectory() as folder:
                at = pathlib.Path(folder)
                (at / "stream/t").mkdir(parents=True)
                rows = "".join(json.dumps({"text": f"word {i}", "label": "ab"[i % 2]}) + "\n" for i in range(4))
                for split in ("train", "test"):
                    (at / f"stream/t/{split}.jsonl").write_text(rows)
                subprocess.run([self.train, "tiny-base", at / "tiny.gguf"], check=True, capture_output=True)
                call = [self.train, "stream", at / "stream", "-m", at / "tiny.gguf", "-b", at / "b.cpb", "--trunk", "1", "--epochs", "1"]
                done = subprocess.run(call, capture_output=True, text=True)
                if done.returncode and "valid.jsonl" not in done.stderr:
                    raise Failed(f"conpet-train fails on a stream of four rows:\n{done.stderr}")
                self.can_do_without_valid = done.returncode == 0
        return 0 if self.can_do_without_valid else 1

    def run(self, stream, drawn, entry, key):
        """Learns the drawn rows, scores all test rows after each stage; returns figures and settings of the report.
        May go on with a run of the same key that was killed."""
        base, arguments, valid = entry
        # Of its own, for others may hold out other rows, in a process beside this one.
        folder = self.work / f"{stream.name}-{key['rows']}-{key['seed']}-{key['who']}"
        bundle = self.work / "runs" / f"{folder.name}.cpb"
        leftover, report, begun = bundle.with_suffix(".work"), bundle.with_suffix(".report"), bundle.with_suffix(".key")
        stream.write(drawn, folder, self.held_out(valid))
        resume = self.resume and begun.exists() and json.loads(begun.read_text()) == key and leftover.exists() and bundle.exists()
        if not resume:
            bundle.unlink(missing_ok=True)
            shutil.rmtree(leftover, ignore_errors=True)
            bundle.parent.mkdir(parents=True, exist_ok=True)
            begun.write_text(json.dumps(key))
        shutil.rmtree(report, ignore_errors=True)
        call = [self.train, "stream", folder, "-m", self.base(base)[0], "-b", bundle, "--report", report, "--method", "dynamic"]
        call += ["--seed", str(key["seed"]), "--threads", str(self.threads), *arguments] + ["--resume"] * resume
        with open(bundle.with_suffix(".log"), "a" if resume else "w") as log:
            done = subprocess.run(call, stdout=log, stderr=log, env=os.environ | {"CONPET_COMMIT": self.commit})
        if done.returncode:
            raise Failed(f"conpet-train ended with {done.returncode}; the end of {bundle.with_suffix('.log')}:\n" + bundle.with_suffix(".log").read_text()[-1500:])
        method = json.loads((report / "report.json").read_text())["methods"][0]
        bundle.unlink()
        begun.unlink()
        shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(folder)
        return figures(method), {name: value for name, value in method["config"].items() if name != "seed"}


def figures(m):
    """What a run's report says in the end. A row that is refused counts as what it would be answered with."""
    last, over_all, usage = m["stages"][-1], m["metrics"], m["usage"]
    out = {"right": sum(last["right"]), "test_rows": sum(last["rows"]), "forgetting": over_all["forgetting"], "routing": over_all["routing_accuracy"]}
    out |= {"accuracy": out["right"] / out["test_rows"], "task_known": over_all["oracle_accuracy"]}
    # Refusals are reported where there are inputs of no task.
    if seen := over_all["detection"]:
        out |= {"refused": seen["refused_known"], "strangers_refused": seen["refused"], "auroc": seen["auroc"]}
    return out | {"minutes": usage["seconds"] / 60, "bundle_mb": usage["bundle_bytes"] / 1e6, "peak_mb": usage["peak_rss"] / 1e6}

"""What jinja2 makes of the templates in tests/data/templates, set up as transformers sets it up.

    python3 tests/peers/templates.py [--venv FOLDER]

Reads `corpus.json` (conversations, special tokens, the time), the templates `*.jinja` and the one-line templates of
`snippets.txt`, and writes `expected.json` beside them, which `tests/tests/templates.rs` compares with ours. Without
--venv, makes build/templates and installs jinja2 in it. To be run again when a template or a conversation changes.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "templates"
PACKAGE = "jinja2==3.1.6"


def environment(now):
    """The environment that `apply_chat_template` renders in."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

        def _inside(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.datetime.fromtimestamp(now, datetime.timezone.utc).strftime(form)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def rendered(env, source, tokens, conversation):
    """The text, or the message of what went wrong."""
    import jinja2

    messages = [dict(role=role, content=content) for role, content in conversation["messages"]]
    try:
        template = env.from_string(source)
        text = template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=conversation["answer"], **tokens
        )
        return {"text": text}
    except jinja2.exceptions.TemplateError as e:
        return {"error": str(e)}
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as e:
        return {"error": f"{type(e).__name__}: {e}"}


def write():
    corpus = json.loads((DATA / "corpus.json").read_text())
    env = environment(corpus["now"])
    templates = {}
    for path in sorted(DATA.glob("*.jinja")):
        tokens = corpus["tokens"].get(path.stem, corpus["tokens"]["default"])
        source = path.read_bytes().decode()
        templates[path.stem] = [rendered(env, source, tokens, c) for c in corpus["conversations"]]
    lines = [l for l in (DATA / "snippets.txt").read_text().split("\n") if l and not l.startswith("## ")]
    talk = corpus["snippets"]
    # A line that begins with ! is one that is refused here.
    snippets = [rendered(env, l.removeprefix("!"), corpus["tokens"]["default"], talk) for l in lines]
    expected = {"templates": templates, "snippets": snippets}
    (DATA / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
    failed = [l for l, s in zip(lines, snippets) if "error" in s]
    print(f"{len(templates)} templates, {len(corpus['conversations'])} conversations, {len(snippets)} snippets")
    print(f"{len(failed)} snippets are errors in jinja2 too")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / "build" / "templates")
    args = parser.parse_args()
    python = args.venv / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == args.venv.resolve():
        return write()
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", args.venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    os.execv(python, [str(python), *sys.argv])


if __name__ == "__main__":
    main()

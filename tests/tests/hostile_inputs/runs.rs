//! What the runtime is given: bases, bundles, texts and flags.

use super::place::{Case, Place, case};
use conpet_formats::tiny::{self, TinyConfig};

const CLASSIFY: &str = "conpet-run classify -m @/base.gguf -b @/b.cpb --task one";

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let texts: [(&str, &'static [u8], &[&'static str]); 6] = [
        ("no text at all", b"", &["in.txt"]),
        ("text that is not UTF-8", b"open \xff\xfe\n", &["in.txt", "UTF-8"]),
        ("half a JSON object", b"{\"text\": \"open", &["in.txt", "line 1"]),
        ("an object without text", b"{\"text\": \"open\"}\n{\"label\": \"a\"}\n", &["in.txt", "line 2"]),
        ("a number as text", b"{\"text\": 3}\n", &["in.txt", "line 1"]),
        ("objects nested too deep", b"{\"text\":{\"text\":{\"text\":{}}}}\n", &["in.txt", "line 1"]),
    ];
    for (name, text, says) in texts {
        c.push(
            case(format!("run: {name}"), format!("{CLASSIFY} -f @/in.txt"), says, move |p| p.write("in.txt", text))
                .code(1),
        );
    }
    for (name, text, says) in [
        ("not UTF-8", &b"open \xff\xfe\n"[..], &["in.txt", "UTF-8"][..]),
        ("empty", b"", &["in.txt", "fill a chunk|no text"]),
    ] {
        for command in ["perplexity -m @/base.gguf -b @/b.cpb", "tokenize -m @/base.gguf"] {
            let spoil = move |p: &Place| p.write("in.txt", text);
            c.push(case(format!("{command}: {name}"), format!("conpet-run {command} -f @/in.txt"), says, spoil));
        }
    }
    let other =
        |p: &Place| p.write("other.gguf", &tiny::base(&TinyConfig { seed: 99, ..TinyConfig::default() }).unwrap());
    c.extend([
        case("run: a missing file", format!("{CLASSIFY} -f @/absent.txt"), &["absent.txt"], |_| {}).code(4),
        case("run: a folder as file", format!("{CLASSIFY} -f @/stream"), &["stream"], |_| {}).code(4),
        case("run: a text longer than the context", format!("{CLASSIFY} -c 8 -f @/in.txt"), &["tokens", "8"], |p| {
            p.write("in.txt", "open the file ".repeat(40).as_bytes());
        }),
        case(
            "run: an unknown task",
            "conpet-run classify -m @/base.gguf -b @/b.cpb --task zebra x",
            &["zebra", "one"],
            |_| {},
        ),
        case(
            "run: a selector that cannot choose",
            "conpet-run classify -m @/base.gguf -b @/b.cpb x",
            &["--task", "one"],
            |_| {},
        ),
        case("run: a stage that is not there", format!("{CLASSIFY} --stage 9 x"), &["b.cpb", "no stage 9"], |_| {}),
        case(
            "run: another base",
            "conpet-run classify -m @/other.gguf -b @/b.cpb --task one x",
            &["b.cpb", "E_BASE"],
            other,
        )
        .code(3),
        case(
            "run: a damaged head",
            "conpet-run classify -m @/base.gguf -b @/x.cpb --task two x",
            &["x.cpb", "section 1"],
            |p| {
                super::bundles::spoil_section(p, 1);
            },
        )
        .code(1),
        case("run: a base cut short", "conpet-run generate -m @/x.gguf -p hello", &["x.gguf", "E_TRUNCATED"], |p| {
            p.change("base.gguf", "x.gguf", |b| b.truncate(b.len() / 2));
        })
        .code(1),
        case("run: a bundle as base", "conpet-run generate -m @/b.cpb -p hello", &["b.cpb", "E_MAGIC"], |_| {}),
        case(
            "run: a base as bundle",
            "conpet-run route -m @/base.gguf -b @/base.gguf x",
            &["base.gguf", "E_MAGIC"],
            |_| {},
        ),
        case("run: a pipe as base", "conpet-run generate -m @/pipe -p hello", &["pipe", "regular file"], |p| {
            p.pipe("pipe")
        }),
        case("run: no bundle", "conpet-run classify -m @/base.gguf x", &["--bundle"], |_| {}),
        case("run: an empty prompt", "conpet-run generate -m @/base.gguf --prompt=", &["empty"], |_| {}),
        case("run: an unknown cache type", format!("{CLASSIFY} --cache-type q9 x"), &["q9", "f16"], |_| {}),
        case("run: unknown kernels", format!("{CLASSIFY} --kernels abacus x"), &["abacus", "naive"], |_| {}),
        case("run: a batch of none", format!("{CLASSIFY} -B 0 x"), &["--batch-size 0"], |_| {}),
        case("run: more context than the base has", format!("{CLASSIFY} -c 1000000 x"), &["1000000"], |_| {}),
        case(
            "run: a temperature that is none",
            "conpet-run generate -m @/base.gguf -p a --temp NaN",
            &["--temp"],
            |_| {},
        ),
        case(
            "run: a negative penalty",
            "conpet-run generate -m @/base.gguf -p a --repeat-penalty=-1",
            &["--repeat-penalty"],
            |_| {},
        ),
        case("run: a probability of 3", "conpet-run generate -m @/base.gguf -p a --top-p 3", &["--top-p"], |_| {}),
        case("run: bench of nothing", "conpet-run bench -m @/base.gguf -p 0 -n 0", &["-p|--n-prompt"], |_| {}),
        case("run: bench without repetitions", "conpet-run bench -m @/base.gguf -r 0", &["--repetitions"], |_| {}),
        case(
            "run: bench beyond the context",
            "conpet-run bench -m @/base.gguf -p 1000000",
            &["1000000|context"],
            |_| {},
        ),
    ]);
    c
}

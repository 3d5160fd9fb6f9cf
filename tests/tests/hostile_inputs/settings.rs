//! Settings: flags, configuration files and reports.

use super::place::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let flags: [(&str, &[&'static str]); 40] = [
        ("--method magic", &["--method", "magic"]),
        ("--selector magic", &["--selector", "magic"]),
        ("--trunk 4", &["--trunk", "4"]),
        ("--trunk=-2", &["--trunk", "-2"]),
        ("--rank 0", &["--rank", "0"]),
        ("--rank 5000", &["--rank", "5000"]),
        ("--rank many", &["--rank", "many"]),
        ("--lr NaN", &["--lr", "NaN"]),
        ("--lr=-1", &["--lr", "-1"]),
        ("--alpha inf", &["--alpha", "inf"]),
        ("--epochs 0", &["--epochs"]),
        ("--batch 0", &["--batch"]),
        ("--warmup 2", &["--warmup", "2"]),
        ("--shrinkage=-0.5", &["--shrinkage", "-0.5"]),
        ("--margin NaN", &["--margin", "NaN"]),
        ("--weight-decay NaN", &["--weight-decay", "NaN"]),
        ("--clip=-1", &["--clip", "-1"]),
        ("--schedule zigzag", &["--schedule", "zigzag"]),
        ("--sites attn_q,nose", &["--sites", "nose"]),
        ("--selector-feature 9:mean", &["layer 9|9:mean"]),
        ("--selector-feature 1:most", &["most"]),
        ("--head-feature 1:mean", &["--head-feature"]),
        ("--max-len 1000000", &["--max-len", "1000000"]),
        ("--ewc-lambda NaN", &["--ewc-lambda", "NaN"]),
        ("--fisher-rows 0", &["--fisher-rows"]),
        ("--lwf-temperature 0", &["--lwf-temperature", "0"]),
        ("--lae-freeze 2", &["--lae-freeze", "2"]),
        ("--lae-experts none", &["--lae-experts", "none"]),
        ("--memory=-2", &["--memory", "-2"]),
        ("--select first", &["--select", "first", "kmeans"]),
        ("--crl-bank 0", &["--crl-bank"]),
        ("--preset paper", &["--preset", "conpet-paper"]),
        ("--centroid moon", &["--centroid", "moon"]),
        ("--head tail", &["--head", "tail"]),
        ("--random-features 99999", &["--random-features", "99999"]),
        ("--selector-steps 0", &["--selector-steps"]),
        ("--selector-hidden 0", &["--selector-hidden", "0"]),
        ("--order nowhere", &["--order", "nowhere"]),
        ("--ood @/none.jsonl", &["none.jsonl"]),
        ("--no-such-flag 1", &["--no-such-flag"]),
    ];
    for (flag, says) in flags {
        let command = format!("conpet-train stream @/stream -m @/base.gguf -b @/out.cpb {flag}");
        c.push(case(format!("flag: {flag}"), command, says, |_| {}));
    }
    let files: [(&str, &'static [u8], &[&'static str]); 5] = [
        ("no TOML", b"rank = = 4\n", &["c.toml", "line 1"]),
        ("a key that is no setting", b"seed = 3\nrnak = 4\n", &["c.toml", "rnak"]),
        ("a value of another type", b"rank = \"four\"\n", &["c.toml", "rank"]),
        ("a value out of range", b"rank = 0\n", &["rank", "0"]),
        ("not UTF-8", b"# \xff\n", &["c.toml", "UTF-8"]),
    ];
    for (name, text, says) in files {
        let command = "conpet-train stream @/stream -m @/base.gguf -b @/out.cpb --config @/c.toml";
        c.push(case(format!("configuration: {name}"), command, says, move |p| p.write("c.toml", text)));
    }
    let learn = "conpet-train stream @/stream -m @/base.gguf -b @/out.cpb";
    c.extend([
        case("configuration: a missing file", format!("{learn} --config @/c.toml"), &["c.toml"], |_| {}),
        case("configuration: a pipe", format!("{learn} --config @/c.toml"), &["c.toml"], |p| p.pipe("c.toml")),
        case("no base", "conpet-train stream @/stream -b @/out.cpb", &["--model"], |_| {}),
        case("no command", "conpet-train", &["Usage"], |_| {}),
        case("report: a missing file", "conpet-train report @/r.json -o @/joined", &["r.json"], |_| {}),
        case("report: another JSON", "conpet-train report @/r.json -o @/joined", &["r.json"], |p| {
            p.write("r.json", b"{}")
        }),
        case("tiny-base over a file", "conpet-train tiny-base @/b.cpb", &["b.cpb", "exists"], |_| {}),
    ]);
    c
}

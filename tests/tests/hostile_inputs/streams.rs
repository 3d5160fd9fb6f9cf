//! Streams: rows, files and folders that are not what a task needs.

use super::place::{Case, Place, case};

const LEARN: &str = "conpet-train stream @/stream -m @/base.gguf -b @/out.cpb";

fn bad(out: &mut Vec<Case>, name: &str, says: &[&'static str], spoil: impl Fn(&Place) + 'static) {
    out.push(case(format!("stream: {name}"), LEARN, says, spoil));
}

/// One split of the task `red` with these contents.
fn rows(out: &mut Vec<Case>, name: &str, split: &'static str, text: impl AsRef<[u8]>, says: &[&'static str]) {
    let (text, file) = (text.as_ref().to_vec(), format!("stream/red/{split}.jsonl"));
    let says = [&["red/train.jsonl|red/valid.jsonl|red/test.jsonl"], says].concat();
    bad(out, name, &says, move |p| p.write(&file, &text));
}

/// A `stream.json` with these contents.
fn order(out: &mut Vec<Case>, name: &str, text: &'static str, says: &[&'static str]) {
    bad(out, name, &[&["stream.json"], says].concat(), move |p| p.write("stream/stream.json", text.as_bytes()));
}

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let out = &mut c;
    let good = "{\"text\":\"x\",\"label\":\"a\"}\n";
    rows(out, "an empty file", "train", "", &["no rows"]);
    rows(out, "blank lines only", "valid", "\n\n \n", &["no rows"]);
    rows(out, "no JSON", "test", format!("{good}nonsense\n"), &["line 2"]);
    rows(out, "half a row", "train", format!("{good}{{\"text\":\"x\",\"lab"), &["line 2"]);
    rows(out, "a list instead of a row", "train", "[1,2]\n", &["line 1"]);
    rows(out, "a row without an answer", "train", "{\"text\":\"x\"}\n", &["line 1"]);
    rows(out, "a number as text", "train", "{\"text\":3,\"label\":\"a\"}\n", &["line 1"]);
    rows(out, "an empty text", "train", "{\"text\":\"\",\"label\":\"a\"}\n", &["line 1", "empty"]);
    rows(
        out,
        "a conversation without an answer",
        "train",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n",
        &["line 1", "assistant"],
    );
    rows(out, "a label that train.jsonl lacks", "test", "{\"text\":\"x\",\"label\":\"zebra\"}\n", &["line 1", "zebra"]);
    rows(
        out,
        "two kinds of rows",
        "train",
        format!("{good}{{\"prompt\":\"p\",\"completion\":\"c\"}}\n"),
        &["line 2", "kind"],
    );
    rows(out, "another kind in the test rows", "test", "{\"prompt\":\"p\",\"completion\":\"c\"}\n", &["kind"]);
    rows(out, "not UTF-8", "train", b"{\"text\":\"\xff\",\"label\":\"a\"}\n", &["UTF-8"]);
    rows(out, "a byte-order mark, and a bad row", "valid", format!("\u{feff}{good}\r\nno\r\n"), &["line 3"]);
    rows(
        out,
        "a row of two kinds at once",
        "train",
        format!("{good}{{\"text\":\"x\",\"label\":\"a\",\"prompt\":\"p\",\"completion\":\"c\"}}\n"),
        &["line 2", "two kinds"],
    );
    rows(
        out,
        "UTF-16",
        "train",
        good.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>(),
        &["UTF-8|line 1"],
    );
    rows(
        out,
        "nested a thousand deep",
        "train",
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        &["line 1"],
    );
    rows(out, "a label that steers the terminal", "train", "{\"text\":\"x\",\"label\":\"\\u001b[2J\"}\n", &["E_"]);
    rows(
        out,
        "a label of 1,000 bytes",
        "train",
        format!("{{\"text\":\"x\",\"label\":\"{}\"}}\n", "y".repeat(1000)),
        &["E_"],
    );
    bad(out, "a missing split", &["test.jsonl"], |p| p.remove("stream/red/test.jsonl"));
    bad(out, "a folder as a file", &["test.jsonl"], |p| {
        p.remove("stream/red/test.jsonl");
        p.write("stream/red/test.jsonl/x", b"");
    });
    bad(out, "a pipe as a file", &["test.jsonl"], |p| {
        p.remove("stream/red/test.jsonl");
        p.pipe("stream/red/test.jsonl");
    });
    order(out, "no JSON", "{", &[]);
    order(out, "no tasks", "{\"tasks\":[]}", &[]);
    order(out, "a number as a task", "{\"tasks\":[3]}", &[]);
    order(out, "a task without a name", "{\"tasks\":[{\"labels\":[\"a\"]}]}", &["name"]);
    order(out, "a task twice", "{\"tasks\":[\"red\",\"red\"]}", &["red", "twice"]);
    order(out, "a path as a task", "{\"tasks\":[\"../secret\"]}", &["../secret"]);
    order(
        out,
        "a template without {input}",
        "{\"tasks\":[{\"name\":\"red\",\"template\":\"hello\"}]}",
        &["red", "input"],
    );
    order(
        out,
        "a template with another field",
        "{\"tasks\":[{\"name\":\"red\",\"template\":\"{input}{config}\"}]}",
        &["red"],
    );
    order(out, "a label twice", "{\"tasks\":[{\"name\":\"red\",\"labels\":[\"a\",\"b\",\"a\"]}]}", &["red"]);
    bad(out, "a task that has no folder", &["green/train.jsonl"], |p| {
        p.write("stream/stream.json", b"{\"tasks\":[\"green\"]}");
    });
    for (name, path, says) in [("a missing stream", "absent", "absent"), ("a file as stream", "base.gguf", "base.gguf")]
    {
        let command = format!("conpet-train stream @/{path} -m @/base.gguf -b @/out.cpb");
        out.push(case(format!("stream: {name}"), command, &[says], |_| {}));
    }
    out.push(case(
        "stream: an empty folder",
        "conpet-train stream @/empty -m @/base.gguf -b @/out.cpb",
        &["empty", "no tasks"],
        |p| {
            std::fs::create_dir(p.path("empty")).unwrap();
        },
    ));
    out.push(case(
        "stream: a bundle in no folder",
        "conpet-train stream @/stream -m @/base.gguf -b @/absent/deep/out.cpb",
        &["absent"],
        |p| {
            // Its parent is a file, so no folder can be made there.
            p.write("absent", b"");
        },
    ));
    out.push(case(
        "add: a task the bundle knows",
        "conpet-train add @/stream/one -m @/base.gguf -b @/b.cpb",
        &["b.cpb", "one"],
        |p| {
            for split in ["train", "valid", "test"] {
                p.change(&format!("stream/red/{split}.jsonl"), &format!("stream/one/{split}.jsonl"), |_| {});
            }
        },
    ));
    out.push(case(
        "add: a missing task",
        "conpet-train add @/stream/green -m @/base.gguf -b @/b.cpb",
        &["green"],
        |_| {},
    ));
    c
}

//! M-J: manifests that are no canonical JSON, or say what cannot be; and C09, C10.

use super::case::Kind::Bundle;
use super::case::{Case, Want};
use super::forge::{bundle_bytes, commit_at, manifest, put, seal, with_manifest};
use Want::{Fine, Refused};
use conpet_formats::Code::{self, Cap, Duplicate, Missing, NonCanonical, Requires, Text, Type, Value, Version};

/// The good bundle with the first `from` of its manifest replaced.
fn replaced(from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(manifest(bundle_bytes())).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    with_manifest(bundle_bytes(), text.replacen(from, to, 1).as_bytes())
}

/// Bytes put in place of a label, which text cannot hold.
fn label(bytes: &[u8]) -> Vec<u8> {
    let text = manifest(bundle_bytes());
    let at = text.windows(5).position(|w| w == b"\"yes\"").unwrap();
    with_manifest(bundle_bytes(), &[&text[..=at], bytes, &text[at + 4..]].concat())
}

/// `n` strings of JSON, each with its number.
fn numbered(n: usize, f: impl Fn(usize) -> String) -> String {
    (0..n).map(f).collect::<Vec<_>>().join(",")
}

/// A generation task of JSON.
fn task(id: usize) -> String {
    format!(
        "{{\"head\":null,\"id\":{id},\"kind\":\"generation\",\"labels\":[],\"max_answer\":1,\"module\":null,\"name\":\"t{id}\",\"stage\":1,\"template\":\"{{input}}\"}}"
    )
}

pub(crate) fn cases() -> Vec<Case> {
    let text = std::str::from_utf8(manifest(bundle_bytes())).unwrap();
    let mut c = Vec::new();
    let mut add = |id, what: &str, bytes: Vec<u8>, code: Code| {
        c.push(Case::new(Bundle, id, what, bytes, Refused(code)));
    };
    let trunk = |to: &str| replaced("\"trunk\":1", &format!("\"trunk\":{to}"));
    let digest = format!("\"sample\":\"{}\"", super::forge::bundle().manifest().base.sample);
    let sample = |to: &str| replaced(&digest, &format!("\"sample\":\"{to}\""));
    add("C09", "a digest in upper case", sample(&"AB".repeat(32)), Value);
    add("C10", "a path as a digest", sample("../../etc/passwd"), Value);
    add("C10", "a path of the right length", sample(&format!("../{}", "a".repeat(61))), Value);
    add("C10", "a digest of 63", sample(&"a".repeat(63)), Value);
    add("C10", "a digest of 65", sample(&"a".repeat(65)), Value);
    add("C10", "a digest with its name", sample(&format!("sha256:{}", "a".repeat(64))), Value);
    add("M-J01", "a key twice", trunk("1,\"trunk\":1"), Value);
    add("M-J01", "a key of a map twice", replaced("\"seed\":\"1\"", "\"seed\":\"1\",\"seed\":\"1\""), NonCanonical);
    add("M-J02", "a key twice by an escape", trunk("1,\"\\u0074runk\":1"), Value);
    add("M-J02", "an escape that is not needed", replaced("\"one\"", "\"\\u006fne\""), NonCanonical);
    add("M-J02", "an escaped slash", replaced("alpha/r", "alpha\\/r"), NonCanonical);
    add("M-J03", "a space", trunk(" 1"), NonCanonical);
    add(
        "M-J03",
        "a line's end at the end",
        with_manifest(bundle_bytes(), format!("{text}\n").as_bytes()),
        NonCanonical,
    );
    add(
        "M-J04",
        "keys in another order",
        replaced("\"ext\":{},\"format\":\"conpet.bundle/1\"", "\"format\":\"conpet.bundle/1\",\"ext\":{}"),
        NonCanonical,
    );
    for v in ["1.0", "1e3", "-0", "-1", "1e400", "9007199254740992", "99999999999999999999", "01", "+1", "0x1"] {
        add("M-J05", &format!("the number {v}"), trunk(v), Value);
    }
    add("M-J05", "a number of 401 digits", trunk(&format!("1{}", "0".repeat(400))), Value);
    for v in ["NaN", "Infinity", "nan"] {
        add("M-J06", v, trunk(v), Value);
    }
    add("M-J07", "a byte order mark", with_manifest(bundle_bytes(), format!("\u{feff}{text}").as_bytes()), Value);
    add("M-J08", "half a surrogate", label(b"\\ud800"), Value);
    add("M-J08", "surrogates in the wrong order", label(b"\\udc00\\ud800"), Value);
    add("M-J08", "a surrogate in UTF-8", label(b"\xed\xa0\x80"), Value);
    add("M-J08", "an overlong slash", label(b"\xc0\xaf"), Value);
    add("M-J08", "a byte that is no UTF-8", label(b"\xff"), Value);
    for open in ["[", "{\"a\":"] {
        add(
            "M-J09",
            &format!("10,000 times {open}"),
            replaced("\"ext\":{}", &format!("\"ext\":{{\"a\":{}", open.repeat(10_000))),
            Value,
        );
        add(
            "M-J09",
            &format!("10,000 times {open} in an unknown field"),
            trunk(&format!("1,\"zz\":{}", open.repeat(10_000))),
            Value,
        );
    }
    add("M-J09", "nothing but brackets", with_manifest(bundle_bytes(), "[".repeat(10_000).as_bytes()), Value);
    add("M-J11", "an unknown field", trunk("1,\"zz\":1"), Value);
    add("M-J11", "an unknown field of a task", replaced("\"max_answer\":0", "\"max_answer\":0,\"maxx\":0"), Value);
    add("M-J11", "a field too few", replaced(",\"trunk\":1", ""), Value);
    add("M-J11", "another format", replaced("conpet.bundle/1", "conpet.bundle/2"), Version);
    add("M-J11", "nothing", with_manifest(bundle_bytes(), b""), Value);
    add(
        "X14",
        "the layout of rows, which no import has converted",
        replaced("\"kind\":\"lora\",\"rank\"", "\"kind\":\"lora\",\"layout\":\"hf\",\"rank\""),
        Value,
    );
    add("M-J12", "an unknown requirement", replaced("\"selector:lda\"]", "\"selector:lda\",\"zz\"]"), Requires);
    add("M-J12", "a selector of the future", replaced("\"selector:lda\"]", "\"selector:sapt\"]"), Requires);
    add("M-J12", "a requirement too few", replaced("\"kind:lora\",", ""), Value);
    add("M-J12", "a requirement twice", replaced("\"kind:lora\",", "\"kind:lora\",\"kind:lora\","), Value);
    add("M-J13", "a module in no section", replaced("\"section\":0", "\"section\":600"), Missing);
    add("M-J13", "a module in section 2^32-1", replaced("\"section\":0", "\"section\":4294967295"), Missing);
    add("M-J13", "two modules in one section", replaced("\"section\":2", "\"section\":0"), Duplicate);
    add("M-J13", "a module that is a selector", replaced("\"section\":0", "\"section\":4"), Type);
    add("M-J13", "a module that is a head", replaced("\"section\":0", "\"section\":1"), Type);
    add("M-J13", "a task with a module that is not there", replaced("\"module\":1", "\"module\":2"), Missing);
    add("M-J13", "a task with a head that is not there", replaced("\"head\":1", "\"head\":7"), Missing);
    add("M-J13", "a task with another's head", replaced("\"head\":1", "\"head\":0"), Value);
    for rank in [0, 4097] {
        add("M-J14", &format!("rank {rank}"), replaced("\"rank\":2", &format!("\"rank\":{rank}")), Value);
    }
    for scale in ["3", "1e999", "-2", "2.0", "NaN", "0"] {
        add(
            "M-J14",
            &format!("a scale of {scale}"),
            replaced("\"scale\":\"2\"", &format!("\"scale\":\"{scale}\"")),
            Value,
        );
    }
    add("M-J14", "a scale that is no text", replaced("\"scale\":\"2\"", "\"scale\":2"), Value);
    add("M-J14", "an alpha of 0", replaced("\"alpha\":\"4\"", "\"alpha\":\"0\""), Value);
    add("M-J14", "a temperature of 0", replaced("\"temperature\":\"1.25\"", "\"temperature\":\"0\""), Value);
    add("M-J14", "a margin of 2", replaced("\"margin\":\"0\"", "\"margin\":\"2\""), Value);
    add("M-J14", "a threshold of -1", replaced("\"threshold\":\"0\"", "\"threshold\":\"-1\""), Value);
    add("M-J14", "no candidates", replaced("\"top_k\":1", "\"top_k\":0"), Value);
    add("M-J14", "more sites than listed", replaced("\"site_count\":1", "\"site_count\":2"), Value);
    add("M-J14", "a dtype of 8 bits", replaced("\"dtype\":\"F16\"", "\"dtype\":\"Q8_0\""), Type);
    let empty = replaced("\"tasks\":[{", &format!("\"tasks\":[{},{{", numbered(4095, task)));
    add("M-J15", "4,097 tasks", empty, Cap);
    add("M-J15", "4,000,000,000 layers of trunk", trunk("4000000000"), Cap);
    for (what, s) in [
        ("an escape", "\\u001b[0m"),
        ("a NUL", "\\u0000"),
        ("a direction", "\u{202e}"),
        ("a mark", "\u{200f}"),
        ("a DEL", "\u{7f}"),
        ("a C1 control", "\u{9b}"),
    ] {
        add("M-J15", &format!("{what} in a label"), label(s.as_bytes()), Text);
        add("M-J15", &format!("{what} in a name"), replaced("\"name\":\"one\"", &format!("\"name\":\"{s}\"")), Text);
        add(
            "M-J15",
            &format!("{what} in the base's name"),
            replaced("\"name\":\"conpet tiny\"", &format!("\"name\":\"{s}\"")),
            Text,
        );
        add("M-J15", &format!("{what} in provenance"), replaced("\"seed\":\"1\"", &format!("\"seed\":\"{s}\"")), Text);
        add("M-J15", &format!("{what} in ext"), replaced("\"ext\":{}", &format!("\"ext\":{{\"k\":\"{s}\"}}")), Text);
    }
    add("M-J15", "a label of 257 bytes", label(&[b'x'; 257]), Cap);
    add("M-J15", "two equal labels", replaced("\"yes\"", "\"no\""), Duplicate);
    add("M-J15", "an empty label", label(b""), Duplicate);
    add("M-J15", "two equal names", replaced("\"name\":\"two\"", "\"name\":\"one\""), Duplicate);
    add(
        "M-J15",
        "33 parts of a feature",
        replaced("\"parts\":[", &format!("\"parts\":[{},", numbered(32, |_| "{\"layer\":1,\"pool\":\"mean\"}".into()))),
        Cap,
    );
    add("M-J15", "a feature of layer 4,000,000,000", replaced("\"layer\":1", "\"layer\":4000000000"), Value);
    add("M-J16", "modules in another order", replaced("\"id\":\"m0000\"", "\"id\":\"m0001\""), Value);
    add("M-J16", "heads in another order", replaced("\"id\":\"h0001\"", "\"id\":\"h0000\""), Value);
    add("M-J16", "tasks in another order", replaced("\"id\":1,\"kind\"", "\"id\":0,\"kind\""), Value);
    add(
        "M-J16",
        "a selector without its section",
        replaced("\"section\":4,\"stats\"", "\"section\":null,\"stats\""),
        Value,
    );
    add(
        "M-J16",
        "a selector with a module of its own",
        replaced("\"margin\":\"0\",\"module\":null", "\"margin\":\"0\",\"module\":0"),
        Value,
    );
    add(
        "M-J16",
        "a head for the labels of another task",
        replaced("\"section\":3,\"tasks\":[1]", "\"section\":3,\"tasks\":[0,1]"),
        Value,
    );
    add("M-J16", "a task learned later than its stage", replaced("\"stage\":2", "\"stage\":3"), Value);
    for (id, what, template) in [
        ("X02", "Jinja", "{% for x in y %}{input}"),
        ("X02", "an expression", "{{config}}"),
        ("X03", "an unknown placeholder", "{label} {input}"),
        ("X04", "a lone brace", "{input} }"),
    ] {
        add(
            id,
            &format!("{what} in a task's template"),
            replaced("\"template\":\"{input}\"", &format!("\"template\":\"{template}\"")),
            Value,
        );
    }
    c.extend(located());
    c
}

/// Those whose error must name the very place; and what must be read.
fn located() -> Vec<Case> {
    let text = std::str::from_utf8(manifest(bundle_bytes())).unwrap();
    let case = |id, what: &str, bytes, want| Case::new(Bundle, id, what, bytes, want).in_section("manifest");
    let at = |what: &str| text.find(what).unwrap() as u64;
    let mut longest = bundle_bytes().to_vec();
    // One byte more than the cap: refused by its length, before a byte of it is looked at.
    longest = with_manifest(&longest, &[b' '; (4 << 20) + 1]);
    let mut ignored = replaced("\"stats\":5", "\"stats\":null");
    let kind = commit_at(&ignored) + 144 + 5 * 96 + 48;
    put(&mut ignored, kind, &0x8055u16.to_le_bytes());
    seal(&mut ignored);
    vec![
        Case::new(Bundle, "M-J10", "a manifest of 4 MiB + 1", longest, Refused(Cap)).at(60),
        Case::new(Bundle, "C11", "an ignorable section of unknown kind", ignored, Fine),
        case("M-J03", "a space behind a colon", replaced("\"trunk\":", "\"trunk\": "), Refused(NonCanonical))
            .at(at("\"trunk\":") + 8),
        case("M-J03", "line ends", with_manifest(bundle_bytes(), format!("\n\n{text}x").as_bytes()), Refused(Value))
            .at(text.len() as u64 + 2),
    ]
}

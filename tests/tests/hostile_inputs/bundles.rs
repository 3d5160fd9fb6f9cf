//! Bundles: other files, damage at every kind of place, and the wrong base.

use super::place::{Case, Place, case};
use conpet_formats::bundle::Bundle;
use conpet_formats::tiny::{self, TinyConfig};

/// The bundle spoiled by `f`, as `x.cpb`.
fn damaged(f: impl Fn(&mut Vec<u8>) + 'static) -> impl Fn(&Place) + 'static {
    move |p| p.change("b.cpb", "x.cpb", &f)
}

/// Another base of the same shape.
fn other_base(p: &Place) {
    p.write("other.gguf", &tiny::base(&TinyConfig { seed: 99, ..TinyConfig::default() }).unwrap());
}

/// Changes a byte of a section, which is found by opening the good bundle.
pub(crate) fn spoil_section(p: &Place, index: usize) {
    let at = Bundle::open(&p.path("b.cpb")).unwrap().section_records()[index].offset as usize;
    p.change("b.cpb", "x.cpb", |b| b[at + 300] ^= 1);
}

const ADD: &str = "conpet-train add @/stream/red -m @/base.gguf -b";

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let add = |name: &str, spoil: Box<dyn Fn(&Place)>| (name.to_owned(), std::rc::Rc::from(spoil));
    type Named = (String, super::place::Spoil);
    // Whatever is wrong with the file as a whole must be noticed by every program that opens it.
    let whole: Vec<Named> = vec![
        add("an empty bundle", Box::new(|p| p.write("x.cpb", b""))),
        add("text", Box::new(|p| p.write("x.cpb", &b"hello world\n".repeat(1000)))),
        add("a GGUF", Box::new(|p| p.change("base.gguf", "x.cpb", |_| {}))),
        add(
            "line ends changed",
            Box::new(damaged(|b| {
                b.splice(4..6, *b"\n");
            })),
        ),
        add(
            "a newer major version",
            Box::new(damaged(|b| {
                [0, 4096].iter().for_each(|at| b[at + 8] = 9);
            })),
        ),
        add("one page", Box::new(damaged(|b| b.truncate(4096)))),
        add("superblocks only", Box::new(damaged(|b| b.truncate(8192)))),
        add("cut in the first stage", Box::new(damaged(|b| b.truncate(12_000)))),
        add("cut in the last commit", Box::new(damaged(|b| b.truncate(b.len() - 4096)))),
        add("both superblocks zero", Box::new(damaged(|b| b[..8192].fill(0)))),
        add(
            "both superblocks damaged",
            Box::new(damaged(|b| {
                [40, 4136].iter().for_each(|at| b[*at] ^= 1);
            })),
        ),
        add(
            "the manifest damaged",
            Box::new(damaged(|b| {
                let at = b.len() - 4096 + 700;
                b[at] ^= 1;
            })),
        ),
        add(
            "the section table damaged",
            Box::new(damaged(|b| {
                let at = b.len() - 4096 + 150;
                b[at] ^= 1;
            })),
        ),
        add("everything behind the superblocks zero", Box::new(damaged(|b| b[8192..].fill(0)))),
    ];
    for (name, spoil) in whole {
        for command in ["conpet-inspect verify @/x.cpb", "conpet-inspect rollback @/x.cpb 1", &format!("{ADD} @/x.cpb")]
        {
            let program = command.split(" @").next().unwrap_or_default();
            c.push(Case {
                spoil: spoil.clone(),
                ..case(format!("{program}: {name}"), command, &["x.cpb", "E_|fault"], |_| {})
            });
        }
    }
    let inspect = |name: &str, command: &str, says: &[&'static str], code: i32| {
        case(format!("inspect: {name}"), format!("conpet-inspect {command}"), says, |_| {}).code(code)
    };
    let on = |c: Case, spoil: fn(&Place)| Case { spoil: std::rc::Rc::new(spoil), ..c };
    c.extend([
        on(inspect("a damaged section", "verify @/x.cpb", &["x.cpb", "fault"], 1), |p| spoil_section(p, 0)),
        on(
            inspect("a damaged section's numbers", "tensors @/x.cpb h0001", &["x.cpb", "section 1", "E_DIGEST"], 1),
            |p| {
                spoil_section(p, 1);
            },
        ),
        on(inspect("copying a damaged section", "extract @/x.cpb h0001 @/out", &["x.cpb", "section 1"], 1), |p| {
            spoil_section(p, 1);
        }),
        on(inspect("padding that is not zero", "verify --full @/x.cpb", &["x.cpb", "fault"], 1), |p| {
            p.change("b.cpb", "x.cpb", |b| b[8192 + 4000] = 1);
        }),
        on(
            inspect("a base of the same shape", "verify @/b.cpb -m @/other.gguf", &["other.gguf", "E_BASE"], 3),
            other_base,
        ),
        inspect("a missing bundle", "show @/absent.cpb", &["absent.cpb", "No such file"], 4),
        inspect("a folder", "show @/stream", &["stream", "regular file"], 4),
        on(inspect("a pipe", "verify @/pipe.cpb", &["pipe.cpb", "regular file"], 4), |p| p.pipe("pipe.cpb")),
        on(inspect("a link", "show @/link.cpb", &["link.cpb", "link"], 4), |p| {
            std::os::unix::fs::symlink(p.path("b.cpb"), p.path("link.cpb")).unwrap();
        }),
        inspect("a stage that is not there", "show @/b.cpb --stage 7", &["b.cpb", "no stage 7"], 2),
        inspect("comparing with no such stage", "diff @/b.cpb 1 9", &["b.cpb", "no stage 9"], 2),
        inspect("going back to no such stage", "rollback @/b.cpb 3", &["b.cpb", "no stage 3"], 2),
        inspect("a part that is not there", "tensors @/b.cpb m0000", &["m0000"], 2),
        inspect("copying over a file", "extract @/b.cpb h0000 @/base.gguf", &["base.gguf", "exists"], 2),
        inspect("copying into nowhere", "extract @/b.cpb h0000 @/absent/x", &["absent"], 4),
        inspect("a number that is none", "diff @/b.cpb 1 -2", &["-2"], 2),
        inspect("no file", "verify", &["<FILE>"], 2),
        case(
            "train: adding on another base",
            "conpet-train add @/stream/red -m @/other.gguf -b @/b.cpb",
            &["b.cpb", "E_BASE"],
            other_base,
        ),
        case(
            "train: a stage that is not there",
            "conpet-train eval @/stream -m @/base.gguf -b @/b.cpb --stage 9",
            &["b.cpb", "no stage 9"],
            |_| {},
        ),
        case(
            "train: a stream of other tasks",
            "conpet-train eval @/stream -m @/base.gguf -b @/b.cpb",
            &["stream", "lacks"],
            |_| {},
        ),
        case(
            "train: scoring on another base",
            "conpet-train eval @/stream -m @/other.gguf -b @/b.cpb",
            &["b.cpb", "E_BASE"],
            other_base,
        ),
        case(
            "train: a bundle that exists",
            "conpet-train stream @/stream -m @/base.gguf -b @/b.cpb",
            &["b.cpb", "exist"],
            |_| {},
        ),
        case(
            "train: resuming another stream",
            "conpet-train stream @/stream -m @/base.gguf -b @/b.cpb --resume",
            &["b.cpb"],
            |_| {},
        ),
    ]);
    c
}

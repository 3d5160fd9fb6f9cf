//! S: selectors that do not fit the bundle; X10 to X13: bases that do not.

use super::case::Kind::{Base, Selector};
use super::case::{Case, Want};
use super::forge::{HIDDEN, TASKS, base, config, put, selector, selector_of};
use Want::{Fine, Refused};
use conpet_formats::Code::{self, BaseMismatch, Cap, Magic, Missing, NotFinite, Shape, Type, Value};
use conpet_formats::ngrams::Table;
use conpet_formats::quant::QuantType;
use conpet_formats::selector::{BIAS, CLASS_TASK, WEIGHT};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyArch, TinyConfig};
use conpet_formats::{hidden, novelty, refusal};

/// Values of a root in one panel.
const ROOT: usize = HIDDEN * HIDDEN;

/// A good selector's tensors, some of them left out.
fn parts(without: &str) -> TensorsWriter<'static> {
    let mut w = TensorsWriter::new();
    let n = 2 * TASKS;
    for (name, shape, value) in [(WEIGHT, vec![n, HIDDEN], 0.5), (BIAS, vec![n], 0.25)] {
        if name != without {
            w.add_f32(name, &shape, &vec![value; shape.iter().product()]).unwrap();
        }
    }
    if without != CLASS_TASK {
        w.add_i32(CLASS_TASK, &[n], &[0, 0, 1, 1]).unwrap();
    }
    w
}

/// A good selector with something beside.
fn beside(f: impl FnOnce(&mut TensorsWriter<'_>)) -> Vec<u8> {
    let mut w = parts("");
    f(&mut w);
    w.finish().unwrap()
}

/// A random layer before the weight, whose width does not matter: it is refused before.
fn random(size: i32, dim: usize) -> Vec<u8> {
    beside(|w| {
        w.add_i32(hidden::SEED, &[3], &[1, 0, size]).unwrap();
        w.add_f32(hidden::SHIFT, &[dim], &vec![0.0; dim]).unwrap();
        w.add_f32(hidden::SCALE, &[dim], &vec![1.0; dim]).unwrap();
    })
}

/// A table of two n-grams, with another weight and smoothing.
fn grams(table: Table, scale: [f32; 2], counts: [i32; 2]) -> Vec<u8> {
    table_of(table, &[-1, 7, 7, 8], scale, counts)
}

fn table_of(table: Table, keys: &[i32], scale: [f32; 2], counts: [i32; 2]) -> Vec<u8> {
    beside(|w| {
        w.add_i32(&table.tensor("keys"), &[2, 2], keys).unwrap();
        w.add_i32(&table.tensor("first"), &[3], &[0, 1, 2]).unwrap();
        w.add_i32(&table.tensor("classes"), &[2], &[0, 3]).unwrap();
        w.add_i32(&table.tensor("counts"), &[2], &counts).unwrap();
        w.add_i32(&table.tensor("totals"), &[4], &[1, 0, 0, 2]).unwrap();
        w.add_f32(&table.tensor("scale"), &[2], &scale).unwrap();
    })
}

/// A space for angles, with its root in `root` values, for a mean of `dim` and these shifts.
fn space(root: usize, dim: usize, shift: &[f32]) -> Vec<u8> {
    beside(|w| {
        w.add_f16(novelty::ROOT, &[root], &vec![0.5; root]).unwrap();
        w.add_f32(novelty::MEAN, &[dim], &vec![0.25; dim]).unwrap();
        w.add_f32(novelty::SHIFT, &[shift.len()], shift).unwrap();
    })
}

/// Calibration rows of tasks, and what share of them may be refused.
fn rows(novelties: &[f32], rows: &[i32], share: f32) -> Vec<u8> {
    beside(|w| {
        w.add_f32(refusal::NOVELTIES, &[novelties.len()], novelties).unwrap();
        w.add_i32(refusal::ROWS, &[rows.len()], rows).unwrap();
        w.add_f32(refusal::SHARE, &[1], &[share]).unwrap();
    })
}

/// The keys of a table without the rest of it.
fn alone_keys(table: Table) -> Vec<u8> {
    beside(|w| w.add_i32(&table.tensor("keys"), &[2, 2], &[-1, 7, 7, 8]).unwrap())
}

/// A payload with one tensor alone of those that go together.
fn alone(name: &str, size: usize) -> Vec<u8> {
    beside(|w| match name {
        novelty::ROOT => w.add_f16(name, &[size], &vec![0.5; size]).unwrap(),
        refusal::ROWS => w.add_i32(name, &[size], &vec![1; size]).unwrap(),
        _ => w.add_f32(name, &[size], &vec![0.5; size]).unwrap(),
    })
}

pub(crate) fn cases() -> Vec<Case> {
    let mut c = Vec::new();
    let mut add = |id, what: &str, bytes: Vec<u8>, code: Code| {
        c.push(Case::new(Selector, id, what, bytes, Refused(code)));
    };
    add("S01", "features of another width", selector_of(&[0, 0, 1, 1], HIDDEN + 1), Shape);
    add("S01", "a hidden layer on features of another width", random(64, HIDDEN - 1), Shape);
    add("S01", "a hidden layer of no units", random(0, HIDDEN), Shape);
    add("S01", "a hidden layer of -1 units", random(-1, HIDDEN), Shape);
    add("S01", "a hidden layer of 2^31-1 units", random(i32::MAX, HIDDEN), Shape);
    for name in [WEIGHT, BIAS, CLASS_TASK] {
        add("S02", &format!("no {name}"), parts(name).finish().unwrap(), Missing);
    }
    let mut w = parts(BIAS);
    w.add_f32(BIAS, &[3], &[0.0; 3]).unwrap();
    add("S02", "four rows and three biases", w.finish().unwrap(), Shape);
    let mut w = parts(CLASS_TASK);
    w.add_i32(CLASS_TASK, &[3], &[0, 0, 1]).unwrap();
    add("S02", "four rows of three classes", w.finish().unwrap(), Shape);
    let mut w = parts(CLASS_TASK);
    w.add_f32(CLASS_TASK, &[4], &[0.0; 4]).unwrap();
    add("S02", "tasks that are floats", w.finish().unwrap(), Shape);
    let mut w = parts(WEIGHT);
    w.add_i32(WEIGHT, &[4, HIDDEN], &[0; 4 * HIDDEN]).unwrap();
    add("S02", "weights that are integers", w.finish().unwrap(), Type);
    let nan = |at: usize| {
        let mut out = selector(TASKS);
        // The weight is the last tensor.
        let begin = out.len() - 2 * TASKS * HIDDEN * 4;
        put(&mut out, begin + 4 * at, &f32::NAN.to_le_bytes());
        out
    };
    add("S04", "NaN in the first row", nan(0), NotFinite);
    add("S04", "NaN in the last row", nan(2 * TASKS * HIDDEN - 1), NotFinite);
    for table in Table::ALL {
        let add = &mut |what: &str, bytes, code| add("S04", &format!("{table:?}: {what}"), bytes, code);
        add("a smoothing of almost nothing", grams(table, [1.0, 1e-30], [1, 2]), Value);
        add("a negative weight of n-grams", grams(table, [-1.0, 0.5], [1, 2]), Value);
        add("n-grams never seen", grams(table, [1.0, 0.5], [1, 0]), Value);
        add("one n-gram twice", table_of(table, &[7, 8, 7, 8], [1.0, 0.5], [1, 2]), Value);
        add("n-grams without their counts", alone_keys(table), Missing);
    }
    add("S01", "a root for features of another width", space(ROOT - HIDDEN, HIDDEN - 1, &[0.5; 4]), Shape);
    add("S01", "a root of one value too few", space(ROOT - 1, HIDDEN, &[0.5; 4]), Shape);
    add("S01", "a mean of another width than the root", space(ROOT, HIDDEN + 1, &[0.5; 4]), Shape);
    add("S02", "three lengths of four classes", space(ROOT, HIDDEN, &[0.5; 3]), Shape);
    add("S02", "a root without its mean", alone(novelty::ROOT, ROOT), Missing);
    add(
        "S02",
        "a root of F32",
        beside(|w| {
            w.add_f32(novelty::ROOT, &[ROOT], &[0.5; ROOT]).unwrap();
            w.add_f32(novelty::MEAN, &[HIDDEN], &[0.5; HIDDEN]).unwrap();
            w.add_f32(novelty::SHIFT, &[4], &[0.5; 4]).unwrap();
        }),
        Type,
    );
    add("S04", "a class at a length below 0", space(ROOT, HIDDEN, &[0.5, -0.5, 0.5, 0.5]), Value);
    add("S02", "calibration rows of three tasks", rows(&[1.0, 2.0], &[1, 1, 0], 0.05), Shape);
    add("S02", "more calibration rows than there are", rows(&[1.0, 2.0], &[1, 2], 0.05), Shape);
    add("S02", "fewer calibration rows than there are", rows(&[1.0, 2.0], &[1, 0], 0.05), Shape);
    add("S02", "-1 calibration rows", rows(&[1.0, 2.0], &[3, -1], 0.05), Shape);
    add("S02", "2^31-1 calibration rows, twice", rows(&[1.0, 2.0], &[i32::MAX, i32::MAX], 0.05), Shape);
    add("S02", "calibration rows without their novelties", alone(refusal::ROWS, TASKS), Missing);
    add("S04", "novelties that do not ascend", rows(&[2.0, 1.0, 3.0], &[2, 1], 0.05), Value);
    add("S04", "a share of refusals above 1", rows(&[1.0, 2.0], &[1, 1], 1.5), Value);
    add("S04", "a share of refusals below 0", rows(&[1.0, 2.0], &[1, 1], -0.5), Value);
    add("S04", "a novelty that is NaN", rows(&[1.0, f32::NAN], &[1, 1], 0.05), NotFinite);
    add(
        "S04",
        "a form without its shift",
        beside(|w| {
            w.add_f32(novelty::LIMIT, &[1], &[0.0]).unwrap();
            w.add_f32(novelty::FORM, &[10], &[0.0; 10]).unwrap();
        }),
        Missing,
    );
    add("S05", "classes of a task that is not there", selector_of(&[0, 0, 1, 2], HIDDEN), Value);
    add("S05", "classes of task -1", selector_of(&[-1, 0, 1, 1], HIDDEN), Value);
    add("S05", "classes in another order of tasks", selector_of(&[1, 1, 0, 0], HIDDEN), Value);
    add("S05", "classes of tasks in turn", selector_of(&[0, 1, 0, 1], HIDDEN), Value);
    let zero = beside(|_| ());
    let fine = |id, what: &str, bytes| Case::new(Selector, id, what, bytes, Fine);
    c.push(fine("S02", "a selector as it should be", selector(TASKS)));
    for table in Table::ALL {
        c.push(fine("S02", &format!("{table:?} as they should be"), grams(table, [1.0, 0.5], [1, 2])));
    }
    c.push(fine("S02", "a space as it should be", space(ROOT, HIDDEN, &[0.5; 4])));
    c.push(fine("S02", "classes at the mean of all rows", space(ROOT, HIDDEN, &[0.0; 4])));
    c.push(fine("S02", "calibration rows as they should be", rows(&[2.0, 3.0, 1.0], &[2, 1], 0.05)));
    c.push(fine("S02", "a task without calibration rows", rows(&[2.0, 3.0], &[2, 0], 1.0)));
    c.push(fine(
        "S02",
        "the form of earlier releases",
        beside(|w| novelty::Novelty::new(vec![1.0; 4], vec![0.5; 10], 0.5).write(w).unwrap()),
    ));
    let mut rowless = zero;
    let begin = rowless.len() - 2 * TASKS * HIDDEN * 4;
    put(&mut rowless, begin, &[0; 4 * HIDDEN]);
    c.push(fine("S03", "a row of zeros, which scores like any other", rowless));
    c.push(Case::new(
        Selector,
        "S01",
        "a hidden layer of many more numbers than described",
        random(hidden::MOST as i32, 8192),
        Refused(Shape),
    ));
    c.extend(bases());
    c
}

/// Bases that a bundle was not trained on.
fn bases() -> Vec<Case> {
    let case = |id, what: &str, bytes, code| Case::new(Base, id, what, bytes, Refused(code));
    let tiny = |c: TinyConfig| tiny::base(&c).unwrap();
    let text = base().windows(6).position(|w| w == b"smollm").unwrap();
    let mut other = base().to_vec();
    put(&mut other, text, b"llama3");
    let mut token = base().to_vec();
    // A letter of a merged token, which keeps every length.
    let at = token.windows(4).rposition(|w| w == b"clos").unwrap();
    token[at] = b'k';
    vec![
        case("X09", "a bundle as a base", super::forge::bundle_bytes().to_vec(), Magic),
        case("X10", "another architecture", tiny(TinyConfig { arch: TinyArch::Gemma3, ..config() }), BaseMismatch),
        case("X10", "more layers", tiny(TinyConfig { layers: 3, ..config() }), BaseMismatch),
        case("X11", "the same shapes, other weights", tiny(TinyConfig { seed: 2, ..config() }), BaseMismatch),
        case("X12", "other blocks", tiny(TinyConfig { linear: QuantType::Q4_0, ..config() }), BaseMismatch),
        case("X13", "another way to split words", other, BaseMismatch),
        case("X13", "another token", token, BaseMismatch),
        Case::new(Base, "X11", "its own base", base().to_vec(), Fine),
    ]
}

/// What a description of a few bytes may ask for is bounded by itself, not by the base's width.
#[test]
fn a_random_layer_is_capped() {
    let dim = hidden::RANDOM_MOST / hidden::MOST + 1;
    let payload = random(hidden::MOST as i32, dim);
    let (e, cost) = super::heap::cost(|| hidden::Hidden::load(&payload, dim).unwrap_err());
    assert_eq!(e.code(), Cap);
    assert!(cost.peak < 1 << 20, "{cost:?}");
}

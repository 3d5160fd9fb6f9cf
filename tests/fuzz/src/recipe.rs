//! Structure-aware inputs: the fuzzer's bytes are either a file as it is, or a recipe that spoils a good file
//! at its fields.
//!
//! After an even first byte the rest is the file; after an odd one `arbitrary` reads the rest as edits.

use arbitrary::{Result, Unstructured};

/// The file itself, or `None` if the input is a recipe; then [`edits`] follow.
pub(crate) fn raw(data: &[u8]) -> Option<&[u8]> {
    data.split_first().filter(|(mode, _)| **mode & 1 == 0).map(|(_, rest)| rest)
}

/// The bytes of a recipe, for `arbitrary` to read.
pub(crate) fn recipe(data: &[u8]) -> Unstructured<'_> {
    Unstructured::new(data.get(1..).unwrap_or_default())
}

/// The input that stands for a file as it is.
pub(crate) fn of_file(file: &[u8]) -> Vec<u8> {
    [&[0], file].concat()
}

/// One to eight edits, at `fields` (offsets of numbers) or anywhere.
pub(crate) fn edits(u: &mut Unstructured<'_>, file: &mut Vec<u8>, fields: &[usize]) {
    for _ in 0..how_many(u) {
        if u.is_empty() || edit(u, file, fields).is_err() {
            return;
        }
    }
}

/// Mostly few, because a file that is wrong in many places is rejected for the first.
fn how_many(u: &mut Unstructured<'_>) -> usize {
    *u.choose(&[1, 1, 1, 1, 2, 2, 4, 8]).unwrap_or(&1)
}

fn edit(u: &mut Unstructured<'_>, file: &mut Vec<u8>, fields: &[usize]) -> Result<()> {
    if file.is_empty() {
        file.push(0);
    }
    let last = file.len() - 1;
    match u.int_in_range(0..=9)? {
        // Change numeric fields, which readers rely on.
        0..=4 => {
            let at = if fields.is_empty() { u.int_in_range(0..=last)? } else { *u.choose(fields)? };
            let width = *u.choose(&[1usize, 2, 4, 8])?;
            let old = file.iter().skip(at).take(width).rev().fold(0, |n, b| n << 8 | u64::from(*b));
            let value = number(u, old, file.len() as u64)?.to_le_bytes();
            for (b, v) in file.iter_mut().skip(at).zip(&value[..width]) {
                *b = *v;
            }
        }
        5 => {
            let at = u.int_in_range(0..=last)?;
            file[at] ^= 1 << u.int_in_range(0..=7)?;
        }
        6 => file.truncate(u.int_in_range(0..=last)?),
        7 => file.extend(u.bytes((u.len() / 2).min(64))?),
        8 => {
            // A piece of the file moved over another.
            let (from, to) = (u.int_in_range(0..=last)?, u.int_in_range(0..=last)?);
            let len = u.int_in_range(0..=(last - from.max(to)).min(200))?;
            file.copy_within(from..from + len, to);
        }
        _ => {
            // A piece cut out, or doubled.
            let from = u.int_in_range(0..=last)?;
            let to = from + u.int_in_range(0..=(last - from).min(100))?;
            let piece = if u.arbitrary()? { file[from..to].repeat(2) } else { Vec::new() };
            file.splice(from..to, piece);
        }
    }
    Ok(())
}

/// A number worth trying: a boundary value, one near the old value, or any.
fn number(u: &mut Unstructured<'_>, old: u64, len: u64) -> Result<u64> {
    Ok(match u.int_in_range(0..=5)? {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => *u.choose(&[0, 1, 7, 31, 32, 33, 4095, 4096, 4097, 8192, 65_537])?,
        3 => {
            let edge = 1u64 << *u.choose(&[7u32, 8, 15, 16, 31, 32, 61, 62, 63])?;
            edge.wrapping_sub(u64::from(u.arbitrary::<bool>()?))
        }
        4 => *u.choose(&[u64::MAX, u64::MAX - 7, u64::MAX - 4095, len, len + 1, len.wrapping_sub(1)])?,
        _ => u.arbitrary()?,
    })
}

/// One to eight edits of a text: words replaced by words of `dictionary`, pieces doubled or cut out.
pub(crate) fn text_edits(u: &mut Unstructured<'_>, text: &mut Vec<u8>, dictionary: &[&str]) {
    for _ in 0..how_many(u) {
        if u.is_empty() || text_edit(u, text, dictionary).is_err() {
            return;
        }
    }
}

fn text_edit(u: &mut Unstructured<'_>, text: &mut Vec<u8>, dictionary: &[&str]) -> Result<()> {
    // Borders between words: quotes, brackets, commas, colons, braces.
    let border = |b: u8| b"\"[]{},:".contains(&b);
    let after = |from: usize| text.iter().skip(from).position(|b| border(*b)).map_or(text.len(), |n| from + n);
    let start = after(u.int_in_range(0..=text.len())?);
    let from = if u.arbitrary()? { start } else { (start + 1).min(text.len()) };
    let mut to = from;
    for _ in 0..u.int_in_range(0..=6)? {
        to = after((to + 1).min(text.len()));
    }
    let piece = text[from..to].to_vec();
    let put = match u.int_in_range(0..=4)? {
        0 => Vec::new(),
        1 => piece.repeat(2),
        2 => u.bytes(u.len().min(4))?.to_vec(),
        _ => u.choose(dictionary)?.as_bytes().to_vec(),
    };
    text.splice(from..to, put);
    Ok(())
}

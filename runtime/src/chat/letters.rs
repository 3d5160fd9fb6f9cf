//! What Python's string methods do, on letters: they go by the characters, and every letter keeps its origin.

use super::words::{Letter, fits};
use minijinja::Error;
use std::ops::Range;

/// `str.isspace` of a character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The range that is left without the characters that `strip` names, at the left, the right, or both.
pub(super) fn stripped(s: &[Letter], strip: &dyn Fn(char) -> bool, (left, right): (bool, bool)) -> Range<usize> {
    let start = if left { s.iter().take_while(|(c, _)| strip(*c)).count() } else { 0 };
    let end = if right { s[start..].iter().rev().take_while(|(c, _)| strip(*c)).count() } else { 0 };
    start..s.len() - end
}

/// Whether `part` stands at `at`.
pub(super) fn stands(s: &[Letter], part: &[char], at: usize) -> bool {
    s.len() >= at + part.len() && s[at..].iter().zip(part).all(|((a, _), b)| a == b)
}

/// Everywhere that `part` stands, in time that grows with the two lengths only (Knuth, Morris and Pratt).
fn places(s: &[Letter], part: &[char]) -> Vec<usize> {
    if part.is_empty() {
        return (0..=s.len()).collect();
    }
    // How much of `part` stands at the end of its first n characters, and is shorter than them.
    let mut shorter = vec![0, 0];
    for n in 1..part.len() {
        let mut k = shorter[n];
        while k > 0 && part[k] != part[n] {
            k = shorter[k];
        }
        shorter.push(k + usize::from(part[k] == part[n]));
    }
    let (mut k, mut out) = (0, Vec::new());
    for (n, (c, _)) in s.iter().enumerate() {
        while k == part.len() || k > 0 && part[k] != *c {
            k = shorter[k];
        }
        k += usize::from(part[k] == *c);
        if k == part.len() {
            out.push(n + 1 - k);
        }
    }
    out
}

/// Where `part` stands first in a range.
pub(super) fn find(s: &[Letter], part: &[char], within: Range<usize>) -> Option<usize> {
    places(&s[within.clone()], part).first().map(|at| within.start + at)
}

/// Where `part` stands last in a range.
pub(super) fn rfind(s: &[Letter], part: &[char], within: Range<usize>) -> Option<usize> {
    places(&s[within.clone()], part).last().map(|at| within.start + at)
}

/// Where `part`, which is not empty, stands without overlap, at most `most` times.
pub(super) fn every(s: &[Letter], part: &[char], most: usize) -> Vec<usize> {
    let mut free = 0;
    let apart = |at: &usize| {
        let fits = *at >= free;
        free = if fits { at + part.len() } else { free };
        fits
    };
    places(s, part).into_iter().filter(apart).take(most).collect()
}

/// `str.split` with a separator.
pub(super) fn split<'s>(s: &'s [Letter], part: &[char], most: usize) -> Vec<&'s [Letter]> {
    let (mut from, mut out) = (0, Vec::new());
    for at in every(s, part, most) {
        out.push(&s[from..at]);
        from = at + part.len();
    }
    out.push(&s[from..]);
    out
}

/// `str.rsplit` with a separator.
pub(super) fn rsplit<'s>(s: &'s [Letter], part: &[char], most: usize) -> Vec<&'s [Letter]> {
    let (mut to, mut out) = (s.len(), Vec::new());
    for at in places(s, part).into_iter().rev() {
        if out.len() < most && at + part.len() <= to {
            out.push(&s[at + part.len()..to]);
            to = at;
        }
    }
    out.push(&s[..to]);
    out.reverse();
    out
}

/// `str.split` at white space.
pub(super) fn words(s: &[Letter], most: usize) -> Vec<&[Letter]> {
    let (mut rest, mut out) = (s, Vec::new());
    loop {
        rest = &rest[stripped(rest, &is_space, (true, false))];
        if rest.is_empty() {
            return out;
        }
        if out.len() == most {
            out.push(rest);
            return out;
        }
        let len = rest.iter().take_while(|(c, _)| !is_space(*c)).count();
        out.push(&rest[..len]);
        rest = &rest[len..];
    }
}

/// `str.rsplit` at white space.
pub(super) fn rwords(s: &[Letter], most: usize) -> Vec<&[Letter]> {
    let (mut rest, mut out) = (s, Vec::new());
    loop {
        rest = &rest[stripped(rest, &is_space, (false, true))];
        if rest.is_empty() || out.len() == most {
            out.extend((!rest.is_empty()).then_some(rest));
            out.reverse();
            return out;
        }
        let len = rest.iter().rev().take_while(|(c, _)| !is_space(*c)).count();
        out.push(&rest[rest.len() - len..]);
        rest = &rest[..rest.len() - len];
    }
}

/// `str.splitlines`.
pub(super) fn lines(s: &[Letter], keep_ends: bool) -> Vec<&[Letter]> {
    let ends = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut rest, mut out) = (s, Vec::new());
    while !rest.is_empty() {
        let len = rest.iter().take_while(|(c, _)| !ends(*c)).count();
        let end = if stands(rest, &['\r', '\n'], len) { 2 } else { usize::from(len < rest.len()) };
        out.push(&rest[..if keep_ends { len + end } else { len }]);
        rest = &rest[len + end..];
    }
    out
}

/// `str.replace`.
///
/// # Errors
/// If the result is too long.
pub(super) fn replace(s: &[Letter], old: &[char], new: &[Letter], most: usize) -> Result<Vec<Letter>, Error> {
    let times = if old.is_empty() { s.len() + 1 } else { places(s, old).len() };
    fits(s.len() + times.min(most).saturating_mul(new.len()))?;
    let mut out = Vec::with_capacity(s.len());
    if old.is_empty() {
        for (n, letter) in s.iter().enumerate() {
            out.extend_from_slice(if n < most { new } else { &[] });
            out.push(*letter);
        }
        out.extend_from_slice(if s.len() < most { new } else { &[] });
        return Ok(out);
    }
    for (n, part) in split(s, old, most).into_iter().enumerate() {
        out.extend_from_slice(if n > 0 { new } else { &[] });
        out.extend_from_slice(part);
    }
    Ok(out)
}

/// `str.upper`.
pub(super) fn upper(s: &[Letter]) -> Vec<Letter> {
    s.iter().flat_map(|(c, said)| c.to_uppercase().map(|c| (c, *said))).collect()
}

/// `str.lower`.
pub(super) fn lower(s: &[Letter]) -> Vec<Letter> {
    // As a whole, because a sigma at the end of a word has a small letter of its own.
    let whole = s.iter().map(|(c, _)| *c).collect::<String>().to_lowercase();
    let origins = s.iter().flat_map(|(c, said)| c.to_lowercase().map(|_| *said));
    whole.chars().zip(origins).collect()
}

/// A letter as it begins a title.
fn titled((c, said): Letter) -> Vec<Letter> {
    let title = match c {
        // The digraphs that have a title case of their own.
        '\u{1c4}'..='\u{1c6}' => vec!['\u{1c5}'],
        '\u{1c7}'..='\u{1c9}' => vec!['\u{1c8}'],
        '\u{1ca}'..='\u{1cc}' => vec!['\u{1cb}'],
        '\u{1f1}'..='\u{1f3}' => vec!['\u{1f2}'],
        // Georgian letters have capitals, but no titles begin with them.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => vec![c],
        _ => {
            let mut upper = c.to_uppercase();
            upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect()
        }
    };
    title.into_iter().map(|c| (c, said)).collect()
}

/// Whether a letter is upper, lower or title case.
fn cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

/// `str.capitalize`.
pub(super) fn capitalize(s: &[Letter]) -> Vec<Letter> {
    let Some(first) = s.first() else { return Vec::new() };
    // Lowered together with the first letter, which tells whether a sigma ends a word.
    let rest = lower(s).split_off(first.0.to_lowercase().count());
    titled(*first).into_iter().chain(rest).collect()
}

/// `str.title`: a word is a run of cased letters.
pub(super) fn title(s: &[Letter]) -> Vec<Letter> {
    let (mut out, mut at) = (Vec::with_capacity(s.len()), 0);
    while at < s.len() {
        let len = s[at..].iter().take_while(|(c, _)| cased(*c)).count();
        out.extend(capitalize(&s[at..at + len]));
        at += len;
        out.extend(s.get(at));
        at += 1;
    }
    out
}

/// Jinja's filter `title`, whose words end at white space, hyphens and opening brackets.
pub(super) fn title_filter(s: &[Letter]) -> Vec<Letter> {
    let between = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let (mut out, mut at) = (Vec::with_capacity(s.len()), 0);
    while at < s.len() {
        let len = s[at..].iter().take_while(|(c, _)| !between(*c)).count();
        let word = &s[at..at + len];
        if let Some(first) = word.first() {
            out.extend(upper(&[*first]));
            out.extend(lower(&word[1..]));
        }
        out.extend(s.get(at + len));
        at += len + 1;
    }
    out
}

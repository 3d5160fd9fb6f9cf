//! The rules by which words follow one another in a text. They are regular expressions with look-ahead elsewhere;
//! here they are written out by hand, because an engine for such expressions would be the largest part of the
//! runtime. The oracle test compares them with the expressions on text of many scripts.

use super::classes::Class;

/// How the next word is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// The rule of Llama 3 and those made after it.
    Modern(Modern),
}

/// `CONTRACTION|[^\r\n\p{L}\p{N}]?LETTERS+|\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[AFTER]*|\s*[\r\n]+|\s+(?!\S)|\s+`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Modern {
    pub(super) letters: Letters,
    pub(super) digits: usize,
    /// Characters that stay with the punctuation before them.
    pub(super) after: &'static [char],
    /// Whether `'s` and its like are cut off: before anything else, or, with [`Letters::Cased`], kept at the end of
    /// the word.
    pub(super) contractions: bool,
}

/// What a word of letters is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// `\p{L}+`
    Plain,
    /// `[\p{L}\p{M}]+`; marks are no punctuation then.
    WithMarks,
    /// A new word begins where lower case turns to upper:
    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`, or else
    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`.
    Cased,
}

impl Rule {
    /// Bytes of the first word of `text`, which is not empty.
    pub(super) fn next(&self, text: &str) -> usize {
        match self {
            Self::Gpt2 => gpt2(text),
            Self::Modern(m) => m.next(text),
        }
    }
}

fn gpt2(text: &str) -> usize {
    if let Some(n) = contraction(text, false) {
        return n;
    }
    let lead = usize::from(text.starts_with(' '));
    let n = match text[lead..].chars().next().map(Class::of) {
        Some(c) if c.letter() => run(text, lead, Class::letter),
        Some(Class::Number) => run(text, lead, |c| c == Class::Number),
        Some(c) if c.other() => run(text, lead, Class::other),
        _ => return spaces(text),
    };
    lead + n
}

impl Modern {
    fn next(&self, text: &str) -> usize {
        let cased = self.letters == Letters::Cased;
        if let Some(n) = contraction(text, true).filter(|_| self.contractions && !cased) {
            return n;
        }
        if let Some(n) = self.word(text) {
            let after = contraction(&text[n..], true).filter(|_| self.contractions && cased);
            return n + after.unwrap_or(0);
        }
        let Some(first) = text.chars().next().map(Class::of) else { return 0 };
        if first == Class::Number {
            let digit = |c: &char| Class::of(*c) == Class::Number;
            return text.chars().take(self.digits).take_while(digit).map(char::len_utf8).sum();
        }
        let space = usize::from(text.starts_with(' '));
        let marks = self.letters == Letters::WithMarks;
        let n = run(text, space, |c| c.other() && !(marks && c == Class::Mark));
        if n > 0 {
            let rest = &text[space + n..];
            let after = rest.find(|c| !self.after.contains(&c)).unwrap_or(rest.len());
            return space + n + after;
        }
        // White space that ends in newlines keeps them all.
        let all = run(text, 0, Class::space);
        match text[..all].rfind(['\r', '\n']) {
            Some(at) => at + 1,
            None => spaces(text),
        }
    }

    /// A word of letters, which one other character may precede.
    fn word(&self, text: &str) -> Option<usize> {
        let first = text.chars().next()?;
        let class = Class::of(first);
        let may_precede = !class.letter() && !matches!(class, Class::Number | Class::Newline);
        // The expression tries its first half with and without the other character, then its second half.
        let leads = [may_precede.then_some(first.len_utf8()), Some(0)];
        let halves: &[fn(&str, usize) -> usize] = match self.letters {
            Letters::Plain => &[|text, from| run(text, from, Class::letter)],
            Letters::WithMarks => &[|text, from| run(text, from, |c| c.letter() || c == Class::Mark)],
            Letters::Cased => &[up_to_lower, upper_first],
        };
        let tries = halves.iter().flat_map(|half| leads.into_iter().flatten().map(move |lead| (half, lead)));
        tries.map(|(half, lead)| (lead, half(text, lead))).find(|(_, n)| *n > 0).map(|(lead, n)| lead + n)
    }
}

fn upper(c: Class) -> bool {
    matches!(c, Class::Upper | Class::Caseless | Class::Mark)
}

fn lower(c: Class) -> bool {
    matches!(c, Class::Lower | Class::Caseless | Class::Mark)
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
fn up_to_lower(text: &str, from: usize) -> usize {
    let begin = run(text, from, upper);
    let n = run(text, from + begin, lower);
    if n > 0 {
        return begin + n;
    }
    // The first part gives back characters until the second has one: the last that is of both.
    let last = text[from..from + begin].char_indices().rev().find(|(_, c)| lower(Class::of(*c)));
    last.map_or(0, |(i, c)| i + c.len_utf8())
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`
fn upper_first(text: &str, from: usize) -> usize {
    match run(text, from, upper) {
        0 => 0,
        n => n + run(text, from + n, lower),
    }
}

/// Bytes of the run of characters for which `f` holds, from `from`.
fn run(text: &str, from: usize, f: impl Fn(Class) -> bool) -> usize {
    text[from..].find(|c| !f(Class::of(c))).unwrap_or(text.len() - from)
}

/// `'s|'t|'re|'ve|'m|'ll|'d`; with `fold`, in any case.
fn contraction(text: &str, fold: bool) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    ["re", "ve", "ll", "s", "t", "m", "d"].into_iter().find_map(|s| {
        let head = rest.get(..s.len())?;
        // Folding also takes U+017F, the long s.
        let same = if fold { head.eq_ignore_ascii_case(s) } else { head == s };
        same.then_some(1 + s.len())
            .or_else(|| (fold && s == "s" && rest.starts_with('ſ')).then_some(1 + 'ſ'.len_utf8()))
    })
}

/// `\s+(?!\S)|\s+`: white space but for its last character if something follows, since that begins the next
/// word; a single one stands alone.
fn spaces(text: &str) -> usize {
    let all = run(text, 0, Class::space);
    if all == text.len() {
        return all;
    }
    let last = text[..all].chars().next_back().map_or(0, char::len_utf8);
    if all > last { all - last } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut<'t>(rule: &Rule, text: &'t str) -> Vec<&'t str> {
        let (mut out, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let n = rule.next(&text[at..]);
            out.push(&text[at..at + n]);
            at += n;
        }
        out
    }

    #[test]
    fn a_new_word_begins_where_the_case_rises() {
        let rule =
            Rule::Modern(Modern { letters: Letters::Cased, digits: 3, after: &['\r', '\n', '/'], contractions: true });
        assert_eq!(cut(&rule, "camelCase HTTPServer IT'S I'm"), ["camel", "Case", " HTTPServer", " IT'S", " I'm"]);
        assert_eq!(cut(&rule, "1234/\n/x"), ["123", "4", "/\n/", "x"]);
        // A letter without case ends the part in upper case, if nothing in lower case follows it.
        assert_eq!(cut(&rule, "ABªCD"), ["ABª", "CD"]);
    }
}

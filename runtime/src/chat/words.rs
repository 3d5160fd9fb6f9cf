//! Which characters of a string the speakers said.
//!
//! For one rendering every character of the speakers' words stands as another one, its mark: a private-use character
//! that occurs nowhere else in this rendering. A mark says which character it stands for and that it was said, so it
//! keeps its origin through whatever copies strings: joining, slicing, loops, variables, macros. What looks at
//! characters must read a string as a [`Text`], which gives both.

use minijinja::value::{ObjectRepr, Tuple};
use minijinja::{Error, ErrorKind, Value};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A character, and whether it was said.
pub(super) type Letter = (char, bool);

/// The marks of one rendering.
#[derive(Debug)]
pub(super) struct Marks(Option<Mutex<Alphabet>>);

#[derive(Debug)]
struct Alphabet {
    /// The mark of each character, and the character of each mark.
    of: HashMap<char, char>,
    said: HashMap<char, char>,
    /// Characters that cannot be marks: the template has them.
    taken: HashSet<char>,
    next: char,
}

/// Most items of a value that is looked at, and how deeply they may be nested.
const ITEMS: usize = 1 << 20;
pub(super) const DEPTH: usize = 64;

/// Private-use planes 15 and 16, without their noncharacters.
const FIRST: char = '\u{f0000}';
const LAST: char = '\u{10fffd}';

impl Marks {
    /// No marks: strings are what they look like.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Marks for a rendering in which the characters of `others` occur, too.
    pub(super) fn beside<'a>(others: impl Iterator<Item = &'a str>) -> Self {
        let taken = others.flat_map(str::chars).filter(|c| *c >= FIRST).collect();
        Self(Some(Mutex::new(Alphabet { of: HashMap::new(), said: HashMap::new(), taken, next: FIRST })))
    }

    fn alphabet(&self) -> Option<MutexGuard<'_, Alphabet>> {
        self.0.as_ref().map(|a| a.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A string of marks that stand for these words; the words themselves if there are no marks.
    pub(super) fn say(&self, words: &str) -> Result<String, Error> {
        self.write(words.chars().map(|c| (c, true)))
    }

    /// The letters as a string.
    ///
    /// # Errors
    /// If they have more different characters than there are marks.
    pub(super) fn write(&self, letters: impl IntoIterator<Item = Letter>) -> Result<String, Error> {
        match self.alphabet() {
            None => Ok(letters.into_iter().map(|(c, _)| c).collect()),
            Some(mut a) => letters.into_iter().map(|(c, said)| if said { a.mark(c) } else { Ok(c) }).collect(),
        }
    }

    /// The letters of a string.
    ///
    /// # Errors
    /// If it is too long.
    pub(super) fn read(&self, s: &str) -> Result<Vec<Letter>, Error> {
        fits(s.len())?;
        Ok(match self.alphabet() {
            None => s.chars().map(|c| (c, false)).collect(),
            Some(a) => s.chars().map(|c| a.said.get(&c).map_or((c, false), |said| (*said, true))).collect(),
        })
    }

    /// A string without marks.
    ///
    /// # Errors
    /// If it is too long.
    pub(super) fn plain(&self, s: &str) -> Result<String, Error> {
        Ok(self.read(s)?.into_iter().map(|(c, _)| c).collect())
    }

    /// A value without marks, for what only looks at it.
    ///
    /// # Errors
    /// If it is too large; a value that holds another one many times counts it as often.
    pub(super) fn look(&self, value: &Value) -> Result<Value, Error> {
        self.look_at(value, &mut ITEMS.clone(), 0)
    }

    fn look_at(&self, value: &Value, budget: &mut usize, depth: usize) -> Result<Value, Error> {
        let large = || Error::new(ErrorKind::InvalidOperation, "a value is too large or nested too deeply");
        *budget = budget.checked_sub(1).filter(|_| depth <= DEPTH).ok_or_else(large)?;
        if let Some(s) = value.as_str() {
            return Ok(if self.0.is_none() { value.clone() } else { self.plain(s)?.into() });
        }
        let (Some(object), Ok(items)) = (value.as_object(), value.try_iter()) else { return Ok(value.clone()) };
        if let (ObjectRepr::Map, Some(pairs)) = (object.repr(), object.try_iter_pairs()) {
            let mut out = Vec::new();
            for (k, v) in pairs {
                out.push((self.look_at(&k, budget, depth + 1)?, self.look_at(&v, budget, depth + 1)?));
            }
            return Ok(Value::from_pairs(out));
        }
        let mut out = Vec::new();
        for item in items.checked() {
            out.push(self.look_at(&item?, budget, depth + 1)?);
        }
        Ok(if value.is_tuple() { Tuple::from(out).into() } else { out.into() })
    }

    /// The letters of a string value.
    ///
    /// # Errors
    /// If it is not a string, or too long.
    pub(super) fn text(&self, value: &Value) -> Result<Text<'_>, Error> {
        let not = || Error::new(ErrorKind::InvalidOperation, format!("a string is needed, not a {}", value.kind()));
        Ok(Text { letters: self.read(value.as_str().ok_or_else(not)?)?, safe: value.is_safe(), marks: self })
    }
}

/// Refuses strings of more bytes than a rendering may have.
pub(super) fn fits(bytes: usize) -> Result<(), Error> {
    if bytes <= super::MARKED_CAP {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("a string of {bytes} bytes is too long")))
}

impl Alphabet {
    fn mark(&mut self, c: char) -> Result<char, Error> {
        if let Some(mark) = self.of.get(&c) {
            return Ok(*mark);
        }
        let full = || Error::new(ErrorKind::InvalidOperation, "the words have too many different characters");
        let mark = (self.next..=LAST).find(|m| *m as u32 & 0xffff < 0xfffe && !self.taken.contains(m));
        let mark = mark.ok_or_else(full)?;
        self.next = char::from_u32(mark as u32 + 1).ok_or_else(full)?;
        self.of.insert(c, mark);
        self.said.insert(mark, c);
        Ok(mark)
    }
}

/// A string as letters.
#[derive(Debug, Clone)]
pub(super) struct Text<'a> {
    pub(super) letters: Vec<Letter>,
    /// Whether the string is what Jinja calls safe: already escaped.
    pub(super) safe: bool,
    marks: &'a Marks,
}

impl Text<'_> {
    /// The characters.
    pub(super) fn chars(&self) -> Vec<char> {
        self.letters.iter().map(|(c, _)| *c).collect()
    }

    /// The characters as a string.
    pub(super) fn plain(&self) -> String {
        self.letters.iter().map(|(c, _)| *c).collect()
    }

    /// Other letters, made of this string's, as a string value of its kind.
    pub(super) fn give(&self, letters: impl IntoIterator<Item = Letter>) -> Result<Value, Error> {
        let s = self.marks.write(letters)?;
        Ok(if self.safe { Value::from_safe_string(s) } else { s.into() })
    }
}

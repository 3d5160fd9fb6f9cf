//! The classes of characters that patterns tell apart, as Unicode has them.

use unicode_general_category::{GeneralCategory as G, get_general_category};

/// What a character is to a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `\p{Lu}`, `\p{Lt}`
    Upper,
    /// `\p{Ll}`
    Lower,
    /// `\p{Lm}`, `\p{Lo}`: letters without case.
    Caseless,
    /// `\p{M}`
    Mark,
    /// `\p{N}`
    Number,
    /// `\s` without the next two.
    Space,
    /// `\r`, `\n`
    Newline,
    Other,
}

impl Class {
    pub(super) fn of(c: char) -> Self {
        match c {
            'a'..='z' => Self::Lower,
            'A'..='Z' => Self::Upper,
            '0'..='9' => Self::Number,
            '\r' | '\n' => Self::Newline,
            '\t' | '\u{b}' | '\u{c}' | ' ' => Self::Space,
            '\0'..='\u{7f}' => Self::Other,
            _ => match get_general_category(c) {
                G::UppercaseLetter | G::TitlecaseLetter => Self::Upper,
                G::LowercaseLetter => Self::Lower,
                G::ModifierLetter | G::OtherLetter => Self::Caseless,
                G::NonspacingMark | G::SpacingMark | G::EnclosingMark => Self::Mark,
                G::DecimalNumber | G::LetterNumber | G::OtherNumber => Self::Number,
                _ if c.is_whitespace() => Self::Space,
                _ => Self::Other,
            },
        }
    }

    /// `\p{L}`
    pub(super) fn letter(self) -> bool {
        matches!(self, Self::Upper | Self::Lower | Self::Caseless)
    }

    /// `\s`
    pub(super) fn space(self) -> bool {
        matches!(self, Self::Space | Self::Newline)
    }

    /// `[^\s\p{L}\p{N}]`
    pub(super) fn other(self) -> bool {
        matches!(self, Self::Mark | Self::Other)
    }
}

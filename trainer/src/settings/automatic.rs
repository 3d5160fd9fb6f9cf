//! Settings that may be automatic: each has a spelling for that, in TOML and as a flag.

use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::str::FromStr;

/// An optional text; absent is spelled as the empty text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Text(Option<String>);

impl Text {
    /// The text, if there is one.
    pub fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self((!text.is_empty()).then_some(text))
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0.unwrap_or_default()
    }
}

impl FromStr for Text {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

/// Number of layers below the first site.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub enum Trunk {
    /// A third of the base's layers; spelled -1.
    #[default]
    Third,
    /// This many.
    Layers(usize),
}

impl Trunk {
    /// The number of layers, for a base with `n_layer`.
    pub fn layers(self, n_layer: usize) -> usize {
        match self {
            Self::Third => n_layer / 3,
            Self::Layers(n) => n,
        }
    }
}

impl TryFrom<i64> for Trunk {
    type Error = String;

    fn try_from(n: i64) -> Result<Self, String> {
        match (n, usize::try_from(n)) {
            (-1, _) => Ok(Self::Third),
            (_, Ok(n)) => Ok(Self::Layers(n)),
            _ => Err(format!("{n} layers: a trunk is -1 (a third of the base's) or a number of layers")),
        }
    }
}

impl From<Trunk> for i64 {
    fn from(trunk: Trunk) -> Self {
        match trunk {
            Trunk::Third => -1,
            Trunk::Layers(n) => n as Self,
        }
    }
}

impl FromStr for Trunk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<i64>().map_err(|e| e.to_string())?.try_into()
    }
}

/// How many rows of each class are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub enum Memory {
    /// The method's own default; spelled -1.
    #[default]
    Own,
    /// All rows; spelled 0.
    All,
    /// At most this many.
    Rows(usize),
}

impl TryFrom<i64> for Memory {
    type Error = String;

    fn try_from(n: i64) -> Result<Self, String> {
        match (n, usize::try_from(n)) {
            (-1, _) => Ok(Self::Own),
            (0, _) => Ok(Self::All),
            (_, Ok(n)) => Ok(Self::Rows(n)),
            _ => Err(format!("{n} rows: a memory is -1 (the method's own), 0 (all) or a number of rows")),
        }
    }
}

impl From<Memory> for i64 {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Own => -1,
            Memory::All => 0,
            Memory::Rows(n) => n as Self,
        }
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<i64>().map_err(|e| e.to_string())?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_values_keep_their_spelling() {
        for n in [-1i64, 0, 1, 12] {
            assert_eq!(i64::from(Trunk::try_from(n).unwrap()), n);
            assert_eq!(i64::from(Memory::try_from(n).unwrap()), n);
            assert_eq!(n.to_string().parse::<Trunk>(), Trunk::try_from(n));
        }
        assert_eq!(
            (Trunk::try_from(-1), Trunk::Third.layers(30), Trunk::Layers(4).layers(30)),
            (Ok(Trunk::Third), 10, 4)
        );
        assert_eq!(Memory::try_from(0), Ok(Memory::All));
        assert!(Trunk::try_from(-2).unwrap_err().contains("-2") && "-2".parse::<Memory>().unwrap_err().contains("-2"));
        assert_eq!((Text::from(String::new()).get(), Text::from("x".to_owned()).get()), (None, Some("x")));
        assert_eq!(String::from(Text::default()), "");
    }
}

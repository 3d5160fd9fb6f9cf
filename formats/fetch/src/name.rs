//! `OWNER/NAME[:QUANT]`: a repository, and which of its files.

use conpet_formats::{Code, Error, Result};
use std::str::FromStr;

/// A repository of the hub, and the quantization wanted from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// `OWNER/NAME`.
    pub repo: String,
    /// As in the names of its files, whatever the case; `None` for `Q4_K_M`, or else the first file.
    pub quant: Option<String>,
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::new(Code::Value, format!("{text:?} is not OWNER/NAME or OWNER/NAME:QUANT"))
                .hint("write it as the hub's page does, for example HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q8_0")
        };
        let (repo, quant) = match text.split_once(':') {
            Some((repo, quant)) => (repo, Some(quant)),
            None => (text, None),
        };
        let (owner, name) = repo.split_once('/').ok_or_else(bad)?;
        // The cache joins the two with `--`, so neither may hold it.
        let fits = |part: &str| {
            let known = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            (1..=96).contains(&part.len())
                && part.bytes().all(known)
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && !part.contains("--")
        };
        let quant_fits = |q: &str| !q.is_empty() && q.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if !fits(owner) || !fits(name) || !quant.is_none_or(quant_fits) {
            return Err(bad());
        }
        Ok(Self { repo: repo.to_owned(), quant: quant.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_refused() {
        let name: Name = "o/n-1.5_GGUF:q8_0".parse().unwrap();
        assert_eq!((name.repo.as_str(), name.quant.as_deref()), ("o/n-1.5_GGUF", Some("q8_0")));
        assert_eq!("o/n".parse::<Name>().unwrap().quant, None);
        for bad in
            ["", "n", "/n", "o/", "o/n/x", "../n", "o/..", "o/n:", "o/n:a/b", "o/n:a:b", "o/a b", "o/a--b", "o/\n"]
        {
            let e = bad.parse::<Name>().unwrap_err();
            assert!(e.code() == Code::Value && e.message().contains("OWNER/NAME"), "{bad:?}: {e}");
        }
    }
}

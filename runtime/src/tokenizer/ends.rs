//! What begins and ends a text: the tokens put around an input, and those that end an answer.

use super::Model;
use super::keys::Keys;
use super::vocab::{TokenKind, Vocab};
use crate::error::{Code, Error, Result};

/// Tokens at the borders of texts.
#[derive(Debug)]
pub(super) struct Ends {
    /// Begins every text.
    pub(super) bos: Option<u32>,
    /// Ends every text that is complete.
    pub(super) closing: Option<u32>,
    /// Ends an answer that is learned.
    pub(super) eos: Option<u32>,
    /// All that end an answer which is being written.
    pub(super) all: Vec<u32>,
}

/// Tokens that end an answer by their name, whatever else the file says, as in llama.cpp.
const NAMES: [&str; 19] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// Tokens of editors' gaps that end an answer too: the key of each, and its names where the key is missing.
const GAPS: [(&str, &[&str]); 3] = [
    ("fim_pad", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"]),
    ("fim_rep", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep", &["<|file_sep|>"]),
];

/// Makes control tokens of those that end an answer by their name.
pub(super) fn mark(vocab: &mut Vocab) {
    NAMES.iter().for_each(|name| {
        if let Some(id) = vocab.find(name.as_bytes()) {
            vocab.make_control(id);
        }
    });
}

impl Ends {
    /// Which tokens a kind of tokenizer has where no key names them, and puts around a text where no key says
    /// whether, is llama.cpp's choice.
    pub(super) fn read(keys: &Keys<'_>, vocab: &Vocab, model: &Model) -> Result<Self> {
        let id = |key: &str| keys.id(key, vocab.len());
        let found = |name: &str| vocab.find(name.as_bytes());
        let control =
            |id: u32| Some(id).filter(|i| (*i as usize) < vocab.len() && vocab.kind(*i) == TokenKind::Control);
        let (mut bos, mut eos, mut sep) = (id("bos")?, id("eos")?, id("seperator")?);
        match model {
            Model::Spm(_) => (bos, eos) = (bos.or(control(1)), eos.or(control(2))),
            Model::Unigram(_) => eos = eos.or(control(1)),
            Model::WordPiece(_) => {
                bos = bos.or(id("cls")?).or(found("[CLS]"));
                sep = sep.or(found("[SEP]"));
            }
            Model::Bpe(_) => bos = bos.or(id("cls")?),
        }
        let encoder = model.wraps();
        let (add_bos, add_eos, add_sep) =
            (keys.bool("add_bos_token")?, keys.bool("add_eos_token")?, keys.bool("add_sep_token")?);
        let begins = add_bos.unwrap_or(encoder || model.begins());
        let closing = match add_eos {
            // Between two texts, a separator ends none of them; where the file speaks of no other end, it does.
            Some(true) if !matches!(model, Model::WordPiece(_)) => Some(("eos", eos)),
            Some(true) => Some(("seperator", sep.or(eos))),
            Some(false) if !matches!(model, Model::WordPiece(_)) => None,
            _ if encoder && add_sep.unwrap_or(true) => Some(("seperator", sep.or(eos))),
            _ => matches!(model, Model::Unigram(_)).then_some(("eos", eos)),
        };
        let needed = |key: &str, id: Option<u32>| {
            id.ok_or_else(|| {
                Error::new(
                    Code::Missing,
                    format!("the file asks for a token around every text, but not which: no {key}"),
                )
                .in_section(format!("key tokenizer.ggml.{key}_token_id"))
                .hint("the model was converted incompletely; convert it again")
            })
        };
        let mut all: Vec<u32> = eos.into_iter().chain(id("eot")?).chain(id("eom")?).collect();
        all.extend(NAMES.iter().filter_map(|name| found(name)));
        for (key, names) in GAPS {
            all.extend(id(key)?.or_else(|| names.iter().find_map(|name| found(name))));
        }
        // Where a turn ends in <|return|>, or in <|flush|>, <|end|> only ends a part of it.
        let has = |name: &str| found(name).is_some();
        if has("<|call|>") && has("<|return|>") || has("<|flush|>") && (has("<|call|>") || has("<|calls|>")) {
            let part = found("<|end|>");
            all.retain(|t| Some(*t) != part);
        }
        Ok(Self {
            bos: if begins { Some(needed("bos", bos)?) } else { None },
            closing: closing.map(|(key, id)| needed(key, id)).transpose()?,
            eos,
            all,
        })
    }
}

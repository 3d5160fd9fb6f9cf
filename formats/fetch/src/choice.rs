//! Which files of a repository are the base.

use conpet_formats::gguf::Shards;
use conpet_formats::{Code, Error, Result};
use std::path::{Component, Path};

/// What llama.cpp takes if no quantization is named and the repository has this one.
const PREFERRED: &str = "Q4_K_M";
/// Files that are GGUF but no base.
const NO_BASE: [&str; 2] = ["mmproj", "imatrix"];

/// The files of the base, all shards in order: those of `file`, else those of `quant`, else the preferred or first.
///
/// # Errors
/// If there is none, or a shard is not in the repository; says what there is.
pub(crate) fn choose(files: &[String], quant: Option<&str>, file: Option<&str>) -> Result<Vec<String>> {
    let bases: Vec<&str> = files.iter().map(String::as_str).filter(|f| is_base(f)).collect();
    let chosen = match (file, quant) {
        (Some(file), _) => bases.iter().find(|f| **f == file),
        (None, Some(quant)) => bases.iter().find(|f| says(f, quant)),
        (None, None) => bases.iter().find(|f| says(f, PREFERRED)).or(bases.first()),
    };
    let Some(chosen) = chosen else { return Err(none(files, &bases, quant, file)) };
    if !is_safe(chosen) {
        return Err(Error::new(Code::Value, format!("the repository names a file {chosen:?}"))
            .hint("such a path might leave the cache; take the file by hand, or another repository"));
    }
    let shards: Vec<String> =
        Shards::named(Path::new(chosen)).iter().map(|p| p.to_string_lossy().into_owned()).collect();
    match shards.iter().find(|s| !files.contains(s)) {
        None => Ok(shards),
        Some(s) => {
            Err(Error::new(Code::Missing, format!("{chosen} is one of {} shards, but there is no {s}", shards.len()))
                .hint("the repository is not complete; take another quantization or another repository"))
        }
    }
}

/// True for the first or only file of something that may be a base.
fn is_base(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    let name = lower.rsplit('/').next().unwrap_or_default();
    lower.ends_with(".gguf")
        && !NO_BASE.iter().any(|n| name.contains(n))
        && Shards::named(Path::new(file)).first().is_some_and(|first| first == Path::new(file))
}

/// Whether a path has this quantization as a word of its own: `Q4_K` is no part of `Q4_K_M` or `IQ4_K`.
fn says(file: &str, quant: &str) -> bool {
    let (file, quant) = (file.to_ascii_lowercase(), quant.to_ascii_lowercase());
    let inside = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = file.as_bytes();
    file.match_indices(&quant).any(|(at, _)| !inside(bytes[..at].last()) && !inside(bytes.get(at + quant.len())))
}

/// Whether the path stays in the folder that it is joined to.
fn is_safe(file: &str) -> bool {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    file.len() <= 1024 && !file.chars().any(|c| c.is_control() || c == '\\') && Path::new(file).components().all(plain)
}

fn none(files: &[String], bases: &[&str], quant: Option<&str>, file: Option<&str>) -> Error {
    let list = |names: &[&str]| {
        let shown: Vec<String> = names.iter().take(20).map(|n| n.escape_debug().to_string()).collect();
        shown.join(", ") + if names.len() > 20 { ", ..." } else { "" }
    };
    if bases.is_empty() {
        let all: Vec<&str> = files.iter().map(String::as_str).collect();
        let e = Error::new(
            Code::Missing,
            format!("the repository has no GGUF file that could be a base, only {}", list(&all)),
        );
        return if files.iter().any(|f| f.ends_with(".safetensors")) {
            e.hint("take a repository with GGUF in its name, or convert this one's safetensors to GGUF")
        } else {
            e.hint("take a repository with GGUF in its name")
        };
    }
    let wanted = file.or(quant).unwrap_or_default();
    Error::new(Code::Missing, format!("the repository has no GGUF file {wanted:?}"))
        .hint(format!("it has {}", list(bases)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 10] = [
        "README.md",
        "m-IQ4_XS.gguf",
        "m-Q4_0_4_4.gguf",
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        "m-UD-Q4_K_XL.gguf",
        "mmproj-m-F16.gguf",
        "F16/m-F16-00001-of-00002.gguf",
        "F16/m-F16-00002-of-00002.gguf",
        "BF16/m-BF16-00001-of-00002.gguf",
    ];

    fn chosen(files: &[&str], quant: Option<&str>, file: Option<&str>) -> Result<Vec<String>> {
        let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
        choose(&files, quant, file)
    }

    #[test]
    fn a_quantization_is_a_whole_word_of_the_path() {
        for (quant, file) in [
            (None, "m-Q4_K_M.gguf"),
            (Some("q8_0"), "m-Q8_0.gguf"),
            (Some("IQ4_XS"), "m-IQ4_XS.gguf"),
            (Some("Q4_K_XL"), "m-UD-Q4_K_XL.gguf"),
            (Some("UD-q4_k_xl"), "m-UD-Q4_K_XL.gguf"),
        ] {
            assert_eq!(chosen(&FILES, quant, None).unwrap(), [file], "{quant:?}");
        }
        assert_eq!(
            chosen(&FILES, Some("F16"), None).unwrap(),
            ["F16/m-F16-00001-of-00002.gguf", "F16/m-F16-00002-of-00002.gguf"]
        );
        for quant in ["Q4_0", "Q4_XS", "Q4_K"] {
            let e = chosen(&FILES, Some(quant), None).unwrap_err();
            assert!(e.code() == Code::Missing && e.remedy().contains("m-IQ4_XS.gguf"), "{e}");
        }
        let e = chosen(&FILES, Some("BF16"), None).unwrap_err();
        assert!(e.message().contains("there is no BF16/m-BF16-00002-of-00002.gguf"), "{e}");
        // Without the preferred one, the first; a named file beats everything.
        assert_eq!(chosen(&["b.txt", "b-Q2_K.gguf", "b-Q3_K.gguf"], None, None).unwrap(), ["b-Q2_K.gguf"]);
        assert_eq!(chosen(&FILES, Some("Q8_0"), Some("m-IQ4_XS.gguf")).unwrap(), ["m-IQ4_XS.gguf"]);
        assert!(chosen(&FILES, None, Some("README.md")).is_err());
    }

    #[test]
    fn a_repository_without_a_base_or_with_unsafe_paths_is_refused() {
        let e = chosen(&["config.json", "model.safetensors"], None, None).unwrap_err();
        assert!(e.message().contains("only config.json, model.safetensors"), "{e}");
        assert!(e.remedy().contains("convert"), "{e}");
        for path in ["../a.gguf", "/etc/a.gguf", "a/../../b.gguf", "a\n.gguf", "a\\..\\b.gguf"] {
            let e = chosen(&[path], None, None).unwrap_err();
            assert!(e.code() == Code::Value && e.remedy().contains("leave the cache"), "{path}: {e}");
        }
    }
}

//! Task templates: literal text around one `{input}`. Not a language: nothing in it can run.

use crate::error::clip;
use crate::{Code, Error, Result};

/// The place of the input in a template; alone, the template that adds nothing.
pub const INPUT: &str = "{input}";
/// Longest template, in bytes.
pub const CAP: usize = 16 << 10;

/// Checks a template: exactly one `{input}`, braces otherwise doubled.
pub fn check(template: &str) -> Result<()> {
    if template.len() > CAP {
        return Err(Error::new(Code::Cap, format!("a template of {} bytes, cap {CAP}", template.len())));
    }
    let mut inputs = 0;
    walk(template, |piece| inputs += usize::from(matches!(piece, Piece::Input)))?;
    if inputs != 1 {
        return Err(Error::new(Code::Value, format!("the template has {inputs} places for {INPUT}, not 1"))
            .hint(format!("write {INPUT} once; write braces that are meant literally as {{{{ and }}}}")));
    }
    Ok(())
}

/// Puts `input` into a template.
pub fn render(template: &str, input: &str) -> Result<String> {
    check(template)?;
    let mut out = String::with_capacity(template.len() + input.len());
    walk(template, |piece| match piece {
        Piece::Text(t) => out.push_str(t),
        Piece::Input => out.push_str(input),
    })?;
    Ok(out)
}

enum Piece<'t> {
    Text(&'t str),
    Input,
}

fn walk<'t>(template: &'t str, mut f: impl FnMut(Piece<'t>)) -> Result<()> {
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        f(Piece::Text(&rest[..at]));
        let tail = &rest[at..];
        let skip = if tail.starts_with("{{") || tail.starts_with("}}") {
            f(Piece::Text(&tail[..1]));
            2
        } else if tail.starts_with(INPUT) {
            f(Piece::Input);
            INPUT.len()
        } else {
            return Err(Error::new(
                Code::Value,
                format!("unknown placeholder or lone brace at {:?} in a template", clip(tail)),
            )
            .hint(format!("only {INPUT}, {{{{ and }}}} are allowed")));
        };
        rest = &tail[skip..];
    }
    f(Piece::Text(rest));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_literally() {
        assert_eq!(render("a {input} {{b}}", "{x}").unwrap(), "a {x} {b}");
        for bad in ["", "x", "{input}{input}", "{config}", "{input", "{input} }", "{{% for %}} {input} {"] {
            assert!(check(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(check(&format!("{{input}}{}", "x".repeat(CAP))).unwrap_err().code(), Code::Cap);
    }
}

//! The references of one source file to others: the modules it declares, its imports, and the paths it spells out.
//!
//! They are read from the file's tokens, so comments and strings do not count, but the arguments of macros do.
//! Code that is only compiled for tests is left out.

use proc_macro2::{TokenStream, TokenTree};

/// A path such as `crate::bundle::Draft`, name by name.
pub(crate) type Names = Vec<String>;

/// One name imported by a `use`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    /// The name in this file; `*` if all names of a module are imported.
    pub(crate) name: String,
    pub(crate) path: Names,
}

/// The references of a file to others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// Modules declared as `mod name;`.
    pub(crate) children: Names,
    /// Every `use`, private ones too: a child may import through its parent.
    pub(crate) imports: Vec<Import>,
    /// Paths of two or more names outside a `use`.
    pub(crate) paths: Vec<Names>,
}

impl Source {
    /// Reads the text of a file.
    ///
    /// # Panics
    /// If it is not Rust.
    pub(crate) fn parse(text: &str) -> Self {
        let mut out = Self::default();
        out.read(text.parse().expect("a source file consists of Rust tokens"));
        out
    }

    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            at = match &tokens[at] {
                TokenTree::Group(g) => {
                    self.read(g.stream());
                    at + 1
                }
                TokenTree::Punct(p) if p.as_char() == '#' && only_for_tests(tokens.get(at + 1)) => {
                    item_end(&tokens, at)
                }
                TokenTree::Ident(i) if *i == "mod" && punct(tokens.get(at + 2), ';') => {
                    self.children.push(tokens[at + 1].to_string());
                    at + 3
                }
                // Not the `use<'a>` of a return type.
                TokenTree::Ident(i) if *i == "use" && !punct(tokens.get(at + 1), '<') => {
                    let end = (at..tokens.len()).find(|i| punct(tokens.get(*i), ';')).unwrap_or(tokens.len());
                    self.import(&tokens[at + 1..end], &[]);
                    end + 1
                }
                TokenTree::Ident(_) => {
                    let (path, end) = path(&tokens, at);
                    self.paths.extend(Some(path).filter(|p| p.len() > 1));
                    end
                }
                _ => at + 1,
            };
        }
    }

    /// Reads one tree of a `use`: `a::b`, `a::b as c`, `a::*` or `a::{..}`, after the names of `before`.
    fn import(&mut self, tokens: &[TokenTree], before: &[String]) {
        let (own, end) = path(tokens, 0);
        let mut names = [before, &own].concat();
        match tokens.get(end..).unwrap_or_default() {
            [.., TokenTree::Group(g)] => {
                let inner: Vec<TokenTree> = g.stream().into_iter().collect();
                for tree in inner.split(|t| punct(Some(t), ',')).filter(|t| !t.is_empty()) {
                    self.import(tree, &names);
                }
            }
            [.., star] if punct(Some(star), '*') => self.imports.push(Import { name: "*".into(), path: names }),
            rest => {
                // `a::{self}` is `a`.
                if names.len() > 1 && names.last().is_some_and(|n| n == "self") {
                    names.pop();
                }
                let renamed = rest.last().filter(|_| rest.len() == 2).map(ToString::to_string);
                if let Some(name) = renamed.or_else(|| names.last().cloned()) {
                    self.imports.push(Import { name, path: names });
                }
            }
        }
    }
}

/// The path that begins at a token, and where it ends.
fn path(tokens: &[TokenTree], mut at: usize) -> (Names, usize) {
    let mut names = Names::new();
    while let Some(TokenTree::Ident(name)) = tokens.get(at) {
        names.push(name.to_string());
        let goes_on = punct(tokens.get(at + 1), ':') && punct(tokens.get(at + 2), ':');
        if !goes_on || !matches!(tokens.get(at + 3), Some(TokenTree::Ident(_))) {
            return (names, at + 1);
        }
        at += 3;
    }
    (names, at)
}

fn punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == c)
}

/// True for the tokens after the `#` of `#[cfg(test)]`, or of a `cfg` that includes tests among its conditions.
fn only_for_tests(attribute: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(g)) = attribute else { return false };
    let text = g.stream().to_string().replace(' ', "");
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// The end of the item that has an attribute at `at`: after its first `;` or block.
fn item_end(tokens: &[TokenTree], at: usize) -> usize {
    use proc_macro2::Delimiter::Brace;
    let ends = |t: &TokenTree| punct(Some(t), ';') || matches!(t, TokenTree::Group(g) if g.delimiter() == Brace);
    tokens[at..].iter().position(ends).map_or(tokens.len(), |i| at + i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_imports_and_paths_are_found() {
        let s = Source::parse(
            r#"
            //! crate::in_a_comment::X
            mod a;
            pub(crate) mod b;
            use crate::{Code, x::{self, Y as Z}, deep::*};
            pub use a::Item;
            #[cfg(test)]
            mod tests;
            #[cfg(test)]
            use crate::only::ForTests;
            fn f<'a>() -> impl Iterator<Item = &'a u8> + use<'a> {
                let text = "crate::in_a_string::X";
                println!("{}", super::g(b::H));
            }
            "#,
        );
        let names = |p: &str| p.split("::").map(str::to_owned).collect::<Names>();
        let import = |name: &str, path: &str| Import { name: name.into(), path: names(path) };
        assert_eq!(s.children, ["a", "b"]);
        let imports = [
            import("Code", "crate::Code"),
            import("x", "crate::x"),
            import("Z", "crate::x::Y"),
            import("*", "crate::deep"),
            import("Item", "a::Item"),
        ];
        assert_eq!(s.imports, imports);
        assert_eq!(s.paths, [names("super::g"), names("b::H")]);
    }

    #[test]
    fn a_test_module_is_left_out_with_all_that_is_in_it() {
        let s = Source::parse(
            "#[cfg(test)] pub(crate) mod tests { use crate::x::Y; } #[cfg(all(test, unix))] fn f() { x::y() } use a::B;",
        );
        assert_eq!((s.imports.len(), s.paths.len(), s.imports[0].name.as_str()), (1, 0, "B"));
    }
}

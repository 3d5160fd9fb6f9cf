//! A template compiled, with Python's operators in place of the library's.
//!
//! Where the library compiles an operator that compares, joins, formats or slices strings, the instruction is
//! replaced by a call of the test or filter that does what Python's operator does (`operators`). For this the
//! library's compiler is called directly; its version is pinned, because that interface is not a stable one.

use super::operators::{ADD, CONCAT, REM, SLICE};
use super::python::wrong;
use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, eval, make_string_output, parse, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, Value};

const NAME: &str = "chat";

/// A template whose syntax is sound.
#[derive(Debug)]
pub(super) struct Program {
    source: String,
}

impl Program {
    /// Reads a template.
    pub(super) fn new(source: &str) -> Result<Self, Error> {
        let program = Self { source: prepared(source)? };
        parse(&program.source, NAME, syntax()?)?;
        Ok(program)
    }

    /// What it was read from.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Runs it.
    pub(super) fn run<'a>(&'a self, env: &'a Environment<'a>, variables: Value) -> Result<String, Error> {
        let mut code = CodeGenerator::new(NAME, &self.source);
        code.compile_stmt(&parse(&self.source, NAME, syntax()?)?);
        let (mut main, mut blocks) = code.finish();
        patch(&mut main);
        blocks.values_mut().for_each(patch);
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        eval(env, &main, variables, &blocks, &mut out, AutoEscape::None)?;
        Ok(text)
    }
}

/// The settings of transformers.
fn syntax() -> Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

/// The template in the library's syntax: `generation`, which only marks a part for training, is a scope of its own.
fn prepared(source: &str) -> Result<String, Error> {
    let (mut out, mut done, mut begins) = (String::with_capacity(source.len()), 0, false);
    for token in tokenize(source, false, syntax()?) {
        let (token, span) = token?;
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        let statement = if let (true, Token::Ident(name)) = (begins, &token) { Some(*name) } else { None };
        let instead = match statement {
            Some("generation") => Some("with"),
            Some("endgeneration") => Some("endwith"),
            Some(name @ ("do" | "autoescape")) => {
                return Err(wrong(format!("the statement {name} in line {} is not supported", span.start_line)));
            }
            _ => None,
        };
        if let Some(instead) = instead {
            out += source.get(done..start).unwrap_or_default();
            out += instead;
            done = end;
        }
        if matches!(token, Token::Str(_) | Token::String(_)) {
            check_escapes(source.get(start..end).unwrap_or_default(), span.start_line)?;
        }
        begins = matches!(token, Token::BlockStart);
    }
    out += source.get(done..).unwrap_or_default();
    Ok(out)
}

/// Refuses the escapes of a string literal that Python reads in another way than the library.
fn check_escapes(literal: &str, line: u16) -> Result<(), Error> {
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        let escape = if c == '\\' { chars.next() } else { None };
        if let Some(e @ ('U' | 'N' | 'a' | 'v' | '/' | '\n')) = escape {
            return Err(wrong(format!("the escape {:?} in line {line} is not supported", format!("\\{e}"))));
        }
    }
    Ok(())
}

/// Replaces operators by what Python does. Every call takes its operands from the stack in the operator's order.
fn patch(code: &mut Instructions<'_>) {
    // No place in the cache of filters and tests that a run has looked up.
    const ANEW: u8 = !0;
    for at in 0.. {
        let Some(instruction) = code.get_mut(at) else { return };
        let instead = match instruction {
            Instruction::Add => Instruction::ApplyFilter(ADD, Some(2), ANEW),
            Instruction::Rem => Instruction::ApplyFilter(REM, Some(2), ANEW),
            Instruction::StringConcat => Instruction::ApplyFilter(CONCAT, Some(2), ANEW),
            Instruction::Slice => Instruction::ApplyFilter(SLICE, Some(4), ANEW),
            Instruction::Eq => Instruction::PerformTest("==", Some(2), ANEW),
            Instruction::Ne => Instruction::PerformTest("!=", Some(2), ANEW),
            Instruction::Lt => Instruction::PerformTest("<", Some(2), ANEW),
            Instruction::Lte => Instruction::PerformTest("<=", Some(2), ANEW),
            Instruction::Gt => Instruction::PerformTest(">", Some(2), ANEW),
            Instruction::Gte => Instruction::PerformTest(">=", Some(2), ANEW),
            Instruction::In => Instruction::PerformTest("in", Some(2), ANEW),
            _ => continue,
        };
        *instruction = instead;
    }
}

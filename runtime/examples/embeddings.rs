//! Embeds texts in the library, for comparison with other programs (`tests/peers/encoders.py`):
//! `embeddings -m BASE [-t N]`.
//!
//! Each line of standard input is JSON: `groups`, each an array of texts that are embedded together, and whether
//! `vectors` are wanted. The answer is a line of JSON: the `seconds` that all groups took, and the `vectors` of the
//! last one, or none.

use anyhow::Result;
use clap::Parser;
use conpet_runtime::cli::Common;
use serde::Deserialize;
use std::io::{BufRead, Write};
use std::time::Instant;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: Common,
}

#[derive(Deserialize)]
struct Asked {
    groups: Vec<Vec<String>>,
    vectors: bool,
}

fn main() -> Result<()> {
    let (engine, _) = Args::parse().common.open()?;
    let pool = engine.pooling();
    for line in std::io::stdin().lock().lines() {
        let asked: Asked = serde_json::from_str(&line?)?;
        let groups: Vec<Vec<&str>> = asked.groups.iter().map(|g| g.iter().map(String::as_str).collect()).collect();
        let (begin, mut vectors) = (Instant::now(), Vec::new());
        for group in &groups {
            vectors = engine.embeddings(group, &pool)?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        vectors.truncate(if asked.vectors { usize::MAX } else { 0 });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::json!({ "seconds": seconds, "vectors": vectors }))?;
        out.flush()?;
    }
    Ok(())
}

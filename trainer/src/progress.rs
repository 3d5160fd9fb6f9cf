//! Progress on stderr: a bar on a terminal; elsewhere a line when work begins or ends, and every half minute.

use crate::services::Event;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shows what a run is doing.
#[derive(Debug)]
pub struct Bar {
    bar: Option<ProgressBar>,
    name: String,
    /// When the last line was written.
    said: Instant,
}

/// How long a log may stay silent.
const SILENCE: Duration = Duration::from_secs(30);

impl Default for Bar {
    fn default() -> Self {
        Self::new()
    }
}

impl Bar {
    /// A bar if stderr is a terminal.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:20!} {wide_bar} {pos}/{len} {msg} eta {eta}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, name: String::new(), said: Instant::now() }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event<'_>) {
        let line = |text: String| drop(writeln!(std::io::stderr(), "{text}"));
        match (&self.bar, event) {
            (Some(b), Event::Begin(what)) => {
                b.set_prefix((*what).to_owned());
                b.set_message("");
                b.tick();
            }
            (Some(b), Event::Step(name, p)) => {
                b.set_prefix((*name).to_owned());
                b.set_length(p.steps);
                b.set_position(p.step);
                b.set_message(format!("loss {:.3} {:.0} tok/s", p.loss, p.rate));
            }
            (Some(b), Event::Stage(t, s)) => b.println(stage(*t, s)),
            (None, Event::Stage(t, s)) => line(stage(*t, s)),
            (None, Event::Step(name, p)) => {
                if self.name != *name || p.step == p.steps || self.said.elapsed() > SILENCE {
                    (self.name, self.said) = ((*name).to_owned(), Instant::now());
                    line(format!("{name}: step {}/{}, loss {:.3}, {:.0} tokens/s", p.step, p.steps, p.loss, p.rate));
                }
            }
            (None, Event::Begin(_)) => {}
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(b) = &self.bar {
            b.finish_and_clear();
        }
    }
}

fn stage(t: usize, s: &crate::metrics::StageScores) -> String {
    let (right, rows, routed): (usize, usize, usize) =
        (s.right.iter().sum(), s.rows.iter().sum(), s.routed.iter().sum());
    let pct = |n: usize| 100.0 * n as f64 / rows.max(1) as f64;
    format!("stage {t}: {:.1} % of {rows} test rows right, {:.1} % routed right", pct(right), pct(routed))
}

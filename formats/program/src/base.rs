//! The base that a command works on: a file, or a repository of a hub that it is fetched from.

use clap::Args;
use conpet_formats::{Code, Error, Result};
use std::path::{Path, PathBuf};

/// Which base, for a command that needs one.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("hf_repo", |a| a.env(REPO)), mut_arg("hf_file", |a| a.env("LLAMA_ARG_HF_FILE")))]
pub struct BaseArgs {
    /// The base, a GGUF file; of a split base, any shard.
    #[arg(short = 'm', long, value_name = "GGUF", env = MODEL, required_unless_present = "hf_repo")]
    pub model: Option<PathBuf>,
    /// Where it is fetched from.
    #[command(flatten)]
    pub hub: HubArgs,
}

impl BaseArgs {
    /// The base's path; it is fetched if it is not here.
    ///
    /// # Errors
    /// As [`HubArgs::or`].
    pub fn path(&self) -> Result<PathBuf> {
        self.hub.or(self.model.as_deref())?.ok_or_else(|| {
            Error::new(Code::Missing, "no base is named").hint("give a file with -m, or a repository with -hf")
        })
    }
}

/// The repository that a base is fetched from.
#[derive(Debug, Clone, Default, Args)]
pub struct HubArgs {
    /// Fetch the base from this repository of Hugging Face, once; also -hf. Of its quantizations Q4_K_M, or else the
    /// first, unless one is named.
    #[arg(long, value_name = "OWNER/NAME[:QUANT]")]
    pub hf_repo: Option<String>,
    /// Fetch this file of the repository, whatever its quantization; also -hff.
    #[arg(long, value_name = "FILE", requires = "hf_repo")]
    pub hf_file: Option<String>,
    /// A token for private and gated repositories [default: HF_TOKEN]; also -hft.
    #[arg(long, value_name = "TOKEN")]
    pub hf_token: Option<String>,
    /// Use no network, only bases that were fetched before; also HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub offline: bool,
}

const MODEL: &str = "LLAMA_ARG_MODEL";
const REPO: &str = "LLAMA_ARG_HF_REPO";

impl HubArgs {
    /// The path of the base: `model`, or one from the hub. A flag beats a variable.
    ///
    /// # Errors
    /// If both are named, or it cannot be fetched.
    pub fn or(&self, model: Option<&Path>) -> Result<Option<PathBuf>> {
        let from_variable = |name: &str, value: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|v| v == value);
        let (Some(repo), Some(file)) = (&self.hf_repo, model) else {
            return self.hf_repo.as_ref().map(|repo| self.fetch(repo)).or(model.map(|m| Ok(m.to_owned()))).transpose();
        };
        match (from_variable(REPO, repo.as_ref()), from_variable(MODEL, file.as_os_str())) {
            (true, false) => Ok(Some(file.to_owned())),
            (false, true) => self.fetch(repo).map(Some),
            _ => Err(Error::new(
                Code::Value,
                format!("two bases: the file {} and the repository {repo}", file.display()),
            )
            .hint("give -m or -hf, not both")),
        }
    }

    #[cfg(feature = "fetch")]
    fn fetch(&self, repo: &str) -> Result<PathBuf> {
        let mut hub = conpet_fetch::Hub::from_environment()?.with_offline(self.offline);
        if let Some(token) = &self.hf_token {
            hub = hub.with_token(token)?;
        }
        let name = repo.parse().map_err(|e: Error| e.in_section(crate::given("--hf-repo", REPO, repo)))?;
        let mut progress = progress::Progress::default();
        let path = hub.base(&name, self.hf_file.as_deref(), &mut |event| {
            // Nothing is lost: the next run goes on from here.
            crate::signals::end_if_asked();
            progress.tell(&event);
        });
        progress.end();
        path
    }

    #[cfg(not(feature = "fetch"))]
    fn fetch(&self, repo: &str) -> Result<PathBuf> {
        Err(Error::new(Code::Unsupported, format!("this build cannot fetch {repo}"))
            .hint("download the file and give it with -m, or build with the feature fetch"))
    }
}

#[cfg(feature = "fetch")]
mod progress {
    use crate::print;
    use conpet_fetch::Event;
    use std::io::IsTerminal;
    use std::time::{Duration, Instant};

    /// Says on standard error how far a download is: a line for each file, and at a terminal one that moves.
    pub(super) struct Progress {
        terminal: bool,
        file: String,
        bytes: u64,
        had: u64,
        begun: Instant,
        shown: Option<Instant>,
        /// Whether the cursor is behind a line that moves.
        open: bool,
    }

    impl Default for Progress {
        fn default() -> Self {
            let terminal = std::io::stderr().is_terminal();
            Self { terminal, file: String::new(), bytes: 0, had: 0, begun: Instant::now(), shown: None, open: false }
        }
    }

    impl Progress {
        pub(super) fn tell(&mut self, event: &Event<'_>) {
            match event {
                Event::Begin { file, bytes, have } => {
                    (self.file, self.bytes, self.had) = ((*file).to_owned(), *bytes, *have);
                    (self.begun, self.shown) = (Instant::now(), None);
                    let rest = if *have > 0 { format!(", {} of them here", mib(*have)) } else { String::new() };
                    self.say(&format!("fetching {file}: {}{rest}", mib(*bytes)));
                }
                Event::Received(have) => self.moved(*have),
                Event::Checking => self.line(&format!("{}: comparing with the checksum", self.file)),
                Event::Waiting { file } => self.say(&format!("another process fetches {file}; waiting for it")),
                Event::Again { why, wait } => {
                    self.say(&format!("{}; trying again in {:.0} s", why.brief(), wait.as_secs_f64()));
                }
                Event::Cached { why } => {
                    self.end();
                    print::warn(&format!("{}; the base in the cache is used", why.brief()));
                }
                _ => self.end(),
            }
        }

        /// Ends the line that moves.
        pub(super) fn end(&mut self) {
            if std::mem::take(&mut self.open) {
                print::say_piece("\r\x1b[K");
            }
        }

        fn say(&mut self, text: &str) {
            self.end();
            print::say(text);
        }

        fn line(&mut self, text: &str) {
            if self.terminal {
                print::say_piece(&format!("\r{text}\x1b[K"));
                self.open = true;
            }
        }

        fn moved(&mut self, have: u64) {
            if self.shown.is_some_and(|t| t.elapsed() < Duration::from_millis(200)) {
                return;
            }
            self.shown = Some(Instant::now());
            let rate = have.saturating_sub(self.had) as f64 / self.begun.elapsed().as_secs_f64().max(1e-3);
            let percent = have * 100 / self.bytes.max(1);
            let text = format!("{}: {percent} % of {}, {}/s", self.file, mib(self.bytes), mib(rate as u64));
            self.line(&text);
        }
    }

    fn mib(bytes: u64) -> String {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spelled, without_token};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        base: BaseArgs,
        /// A text.
        text: Vec<String>,
    }

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(spelled(line.split(' ')))
    }

    #[test]
    fn the_flags_of_llama_cpp_are_no_cry_for_help() {
        for line in ["x -hf o/n:Q8_0 -hff f -hft t", "x -hfr o/n:Q8_0 --hf-file f --hf-token t"] {
            let hub = parsed(line).unwrap().base.hub;
            let all = (hub.hf_repo.as_deref(), hub.hf_file.as_deref(), hub.hf_token.as_deref());
            assert_eq!(all, (Some("o/n:Q8_0"), Some("f"), Some("t")));
        }
        assert_eq!(parsed("x -h").unwrap_err().kind(), clap::error::ErrorKind::DisplayHelp);
        let after = parsed("x -m f -- -hf -hft").unwrap();
        assert_eq!(after.text, ["-hf", "-hft"], "behind -- is text");
        assert!(after.base.hub.hf_repo.is_none());
    }

    #[test]
    fn a_token_is_shown_to_nobody() {
        let shown = |line: &str| without_token(line.split(' ').map(str::to_owned)).join(" ");
        assert_eq!(shown("x -hft secret -hf o/n"), "x -hft ... -hf o/n");
        assert_eq!(shown("x --hf-token secret y"), "x --hf-token ... y");
        assert_eq!(shown("x --hf-token=secret --hf-file f"), "x --hf-token=... --hf-file f");
    }

    #[test]
    fn one_base_is_needed_and_two_are_refused() {
        assert_eq!(parsed("x").unwrap_err().kind(), clap::error::ErrorKind::MissingRequiredArgument);
        assert_eq!(parsed("x -m f").unwrap().base.path().unwrap(), Path::new("f"));
        let e = parsed("x -m f -hf o/n").unwrap().base.path().unwrap_err();
        assert!(e.message().contains("two bases") && e.remedy().contains("not both"), "{e}");
        assert!(parsed("x -hff f -m x").is_err(), "a file of no repository");
        let help = parsed("x --help").unwrap_err().to_string();
        assert!(help.contains("also -hf."), "{help}");
    }
}

//! The settings given to a command, in a file and as flags.

use crate::config::{Config, Flags};
use crate::services::module::Modules;
use crate::settings::Group;
use crate::settings::range::flag;
use conpet_formats::{Code, Error, Result};
use conpet_program::print::say;
use std::path::PathBuf;

/// Arguments that give settings.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
pub struct SettingsArgs {
    /// Settings as TOML; flags override them.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Learn labels by the closed form alone, in seconds; short for --modules none.
    #[arg(long, conflicts_with = "modules")]
    pub quick: bool,
    /// The settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// Which settings were given.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// Those given as flags.
    pub(super) flags: Vec<&'static str>,
    /// Those given in the file.
    pub(super) file: Vec<&'static str>,
}

impl SettingsArgs {
    /// Lays the given settings over those to start from; returns the result and which were given.
    pub(super) fn over(&self, start: Config) -> Result<(Config, Given)> {
        let (mut config, file) = start.over(self.config.as_deref())?;
        config.overlay(&self.flags);
        let mut flags = Config::given(&self.flags);
        if self.quick {
            config.services.module.modules = Modules::None;
            flags.push("modules");
        }
        Ok((config, Given { flags, file }))
    }
}

impl Given {
    /// All settings given, as flags or in the file.
    pub(super) fn all(&self) -> Vec<&'static str> {
        [self.flags.as_slice(), &self.file].concat()
    }

    /// Fails if a flag has no effect on the command. A file may be meant for several commands, so its settings
    /// without effect are only reported, if they differ from the defaults.
    pub(super) fn refuse_without_effect(&self, command: &str, in_effect: &[&str], config: &Config) -> Result<()> {
        if let Some(key) = self.flags.iter().find(|k| !in_effect.contains(k)) {
            let flag = flag(key);
            return Err(Error::new(Code::Unsupported, format!("{flag} has no effect on this {command}"))
                .hint(format!("leave {flag} out")));
        }
        let usual = Config::default();
        let idle = |k: &&&str| !in_effect.contains(*k) && config.get(k) != usual.get(k);
        let idle: Vec<&str> = self.file.iter().filter(idle).copied().collect();
        if !idle.is_empty() {
            say(&format!("settings of the file without effect on this {command}: {}", idle.join(", ")));
        }
        Ok(())
    }
}

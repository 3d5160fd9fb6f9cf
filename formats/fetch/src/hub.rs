//! A hub, and how it is spoken to.

use crate::access::Access;
use crate::cache::Repo;
use crate::choice::choose;
use crate::client::Client;
use crate::download::{Download, Event, patiently};
use crate::name::Name;
use conpet_formats::{Code, Error, Result, fs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A Hugging Face hub and the cache of what was fetched from it.
#[derive(Clone)]
pub struct Hub {
    access: Access,
    cache: PathBuf,
    offline: bool,
    pause: Duration,
}

impl std::fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hub({}, {})", self.access.endpoint, self.cache.display())
    }
}

impl Hub {
    /// A hub by its address, and the folder of the cache.
    ///
    /// # Errors
    /// If the address does not begin with `https://` or `http://`.
    pub fn new(endpoint: &str, cache: &Path) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/');
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        if host.is_none_or(|h| h.is_empty() || h.contains(|c: char| c.is_whitespace() || c.is_control() || c == '@')) {
            return Err(Error::new(Code::Value, format!("{endpoint:?} is not the address of a hub"))
                .in_section("HF_ENDPOINT")
                .hint("use https://HOST, or leave it out for https://huggingface.co"));
        }
        Ok(Self {
            access: Access { endpoint: endpoint.to_owned(), token: None, patience: Duration::from_secs(60) },
            cache: cache.to_owned(),
            offline: false,
            pause: Duration::from_secs(1),
        })
    }

    /// As the variables say that the hub's other programs read: `HF_ENDPOINT`; `HF_HUB_CACHE`, `HF_HOME` and
    /// `XDG_CACHE_HOME`; `HF_TOKEN`, or the file that `hf auth login` writes; `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// If one of them makes no sense, or there is no home for the cache.
    pub fn from_environment() -> Result<Self> {
        let value = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let path = |name: &str| value(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("huggingface")))
            .or_else(|| path("HOME").map(|p| p.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|h| h.join("hub"))).ok_or_else(|| {
            Error::new(Code::Missing, "there is no folder for the cache").hint("name one in HF_HUB_CACHE")
        })?;
        let endpoint = value("HF_ENDPOINT").map(|v| v.to_string_lossy().into_owned());
        let mut hub = Self::new(endpoint.as_deref().unwrap_or("https://huggingface.co"), &cache)?;
        hub.offline = value("HF_HUB_OFFLINE").is_some_and(|v| {
            let v = v.to_string_lossy().to_ascii_lowercase();
            ["1", "true", "yes", "on"].contains(&v.as_str())
        });
        if let Some(token) = value("HF_TOKEN") {
            return hub.with_token(&token.to_string_lossy());
        }
        match path("HF_TOKEN_PATH").or_else(|| home.map(|h| h.join("token"))).filter(|p| p.is_file()) {
            Some(file) => hub.with_token(&fs::read_text(&file)?).map_err(|e| e.in_file(file)),
            None => Ok(hub),
        }
    }

    /// With this token, which only the hub itself gets to see.
    ///
    /// # Errors
    /// If it has characters that no token has.
    pub fn with_token(mut self, token: &str) -> Result<Self> {
        let token = token.trim();
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            // Not the value: it is a secret.
            return Err(Error::new(Code::Value, "the token has characters that no token has")
                .in_section("HF_TOKEN")
                .hint("copy it again from the hub's page"));
        }
        self.access.token = Some(token.to_owned()).filter(|t| !t.is_empty());
        Ok(self)
    }

    /// Only with what is in the cache, if `offline`.
    #[must_use]
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline |= offline;
        self
    }

    /// With this wait before a request is made again (each further wait is twice as long; default 1 s), and this
    /// patience with a server that sends nothing (default 60 s).
    #[must_use]
    pub fn with_waits(mut self, pause: Duration, patience: Duration) -> Self {
        (self.pause, self.access.patience) = (pause, patience);
        self
    }

    /// The path of a base, downloaded unless it is in the cache; of a split one, of its first shard. `file` names
    /// one of the repository's files, over the quantization. The process may end at any moment: what is here of a
    /// file is kept and resumed, and only whole files have their names.
    ///
    /// # Errors
    /// If the hub cannot be reached and the base is not in the cache, the hub refuses, the repository has no such
    /// file, what it sends does not have the checksum, or the disk is full.
    pub fn base(&self, name: &Name, file: Option<&str>, tell: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        let in_repo = |e: Error| e.in_file(&name.repo);
        let cache = Repo::new(&self.cache, &name.repo);
        if self.offline {
            return self.cached(&cache, name, file).map_err(in_repo);
        }
        let client = Client::new(&self.access);
        // The hub may be out of reach for long; a base that is here does not wait for it.
        let here = self.cached(&cache, name, file).ok();
        let listed = match here {
            Some(_) => client.listing(&name.repo),
            None => patiently(self.pause, tell, || client.listing(&name.repo)),
        };
        let listing = match (listed, here) {
            (Ok(listing), _) => listing,
            (Err(f), Some(path)) if f.again.is_some() => {
                tell(Event::Cached { why: &f.error });
                return Ok(path);
            }
            (Err(f), _) => return Err(f.error),
        };
        let commit = listing.commit.clone();
        let files = choose(&listing.files(), name.quant.as_deref(), file).map_err(in_repo)?;
        let download =
            Download { client: &client, cache: &cache, repo: &name.repo, commit: &commit, pause: self.pause };
        let paths = files.iter().map(|f| download.file(f, tell)).collect::<Result<Vec<_>>>()?;
        cache.set_main(&commit)?;
        paths.into_iter().next().ok_or_else(|| in_repo(Error::new(Code::Missing, "no file")))
    }

    /// The path of a base that is in the cache.
    fn cached(&self, cache: &Repo, name: &Name, file: Option<&str>) -> Result<PathBuf> {
        let commit = cache.main()?;
        let files = choose(&cache.files(&commit), name.quant.as_deref(), file).map_err(|e| {
            let text = format!("not in the cache: {}", e.message());
            Error::new(Code::Missing, text)
                .in_file(cache.root())
                .hint(format!("fetch it once with a connection; {}", e.remedy()))
        })?;
        Ok(cache.file(&commit, &files[0]))
    }
}

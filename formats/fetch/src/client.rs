//! Requests to the hub, and what its answers mean.

use crate::access::Access;
use crate::cache::is_commit;
use crate::checksum::{Checksum, short};
use conpet_formats::{Code, Error, Result};
use serde::Deserialize;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

/// Times that a request is made, as long as nothing comes of it.
pub(crate) const TRIES: u32 = 5;
/// Longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
const REDIRECTS: usize = 5;
/// Longest list of a repository's files.
const LISTING_CAP: u64 = 64 << 20;

pub(crate) struct Client<'a> {
    access: &'a Access,
    agent: Agent,
}

/// Why a request failed.
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the same request may succeed later, and the wait that the server asks for.
    pub(crate) again: Option<Option<Duration>>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: None }
    }
}

/// A repository's last commit.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    #[serde(rename = "sha")]
    pub(crate) commit: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    pub(crate) fn files(self) -> Vec<String> {
        self.siblings.into_iter().map(|s| s.rfilename).collect()
    }
}

/// What the hub says of a file.
pub(crate) struct Remote {
    pub(crate) checksum: Checksum,
    pub(crate) bytes: u64,
    /// Where its bytes are; such an address may be good for some minutes only.
    pub(crate) url: String,
}

impl<'a> Client<'a> {
    pub(crate) fn new(access: &'a Access) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, where it is known what the answers on the way mean and who may see the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(access.patience))
            .timeout_per_read(Some(access.patience))
            .user_agent(concat!("conpet/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { access, agent: config.into() }
    }

    /// The repository's last commit and its files.
    pub(crate) fn listing(&self, repo: &str) -> Result<Listing, Failure> {
        let mut url = format!("{}/api/models/{repo}/revision/main", self.access.endpoint);
        for _ in 0..REDIRECTS {
            let mut answer = self.send("GET", &url, None)?;
            if let Some(to) = redirect(&answer, &url)? {
                url = to;
                continue;
            }
            let body = answer.body_mut().with_config().limit(LISTING_CAP).read_to_vec();
            let body = body.map_err(|e| self.broken(&url, &e))?;
            let listing: Listing = serde_json::from_slice(&body).map_err(|e| self.odd(&url, &format!("{e}")))?;
            if !is_commit(&listing.commit) {
                return Err(self.odd(&url, &format!("the commit is {:?}", short(&listing.commit))).into());
            }
            return Ok(listing);
        }
        Err(self.odd(&url, "too many redirects").into())
    }

    /// A file's checksum, size and place.
    pub(crate) fn remote(&self, repo: &str, commit: &str, file: &str) -> Result<Remote, Failure> {
        let mut url = format!("{}/{repo}/resolve/{commit}/{}", self.access.endpoint, encoded(file));
        let (mut etag, mut bytes) = (None, None);
        for _ in 0..REDIRECTS {
            let answer = self.send("HEAD", &url, None)?;
            // Of a large file the hub itself says what its storage, to which it leads, will send.
            etag = etag.or_else(|| header(answer.headers(), "x-linked-etag"));
            bytes = bytes.or_else(|| header(answer.headers(), "x-linked-size"));
            let to = redirect(&answer, &url)?;
            if let Some(to) = to.as_ref().filter(|to| etag.is_none() || bytes.is_none() || self.is_own(to)) {
                url.clone_from(to);
                continue;
            }
            let etag = etag.or_else(|| header(answer.headers(), "etag")).unwrap_or_default();
            let bytes = bytes.or_else(|| header(answer.headers(), "content-length"));
            let bytes = bytes.and_then(|b| b.parse().ok()).ok_or_else(|| self.odd(&url, "it does not say the size"))?;
            let checksum = Checksum::of_etag(&etag).map_err(|e| e.in_file(&url))?;
            return Ok(Remote { checksum, bytes, url: to.unwrap_or(url) });
        }
        Err(self.odd(&url, "too many redirects").into())
    }

    /// The bytes of a place from `from` on; false if they are those from the beginning.
    pub(crate) fn bytes(&self, url: &str, from: u64) -> Result<(Response<Body>, bool), Failure> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let answer = self.send("GET", &url, (from > 0).then_some(from))?;
            if let Some(to) = redirect(&answer, &url)? {
                url = to;
                continue;
            }
            if answer.status() != StatusCode::PARTIAL_CONTENT {
                return Ok((answer, from == 0));
            }
            let range = header(answer.headers(), "content-range").unwrap_or_default();
            if range.strip_prefix("bytes ").and_then(|r| r.split_once('-')?.0.parse().ok()) != Some(from) {
                return Err(self.odd(&url, &format!("it sends the range {:?}, not from {from}", short(&range))).into());
            }
            return Ok((answer, true));
        }
        Err(self.odd(&url, "too many redirects").into())
    }

    /// One request, with the token if it goes to the hub itself; answers that are no answer are failures.
    fn send(&self, method: &str, url: &str, from: Option<u64>) -> Result<Response<Body>, Failure> {
        // Sizes and ranges are those of the file itself.
        let mut request = ureq::http::Request::builder().method(method).uri(url).header("accept-encoding", "identity");
        if let Some(token) = self.access.token.as_deref().filter(|_| self.is_own(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request.body(()).map_err(|e| self.odd(url, &e.to_string()))?;
        let answer = self.agent.run(request).map_err(|e| self.broken(url, &e))?;
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(answer);
        }
        Err(self.refused(url, status, answer.headers()))
    }

    /// True for an address on the hub itself, which alone may see the token.
    fn is_own(&self, url: &str) -> bool {
        origin(url).is_some_and(|o| origin(&self.access.endpoint) == Some(o))
    }

    /// A request that got no whole answer.
    pub(crate) fn broken(&self, url: &str, e: &ureq::Error) -> Failure {
        let hint = format!(
            "check the connection, and {} if you use one; what is in the cache can be used with --offline",
            if url.starts_with("https") { "HTTPS_PROXY" } else { "HTTP_PROXY" }
        );
        Failure {
            error: Error::new(Code::Io, format!("no answer: {e}")).in_file(address(url)).hint(hint),
            again: Some(None),
        }
    }

    /// An answer that makes no sense.
    fn odd(&self, url: &str, what: &str) -> Error {
        Error::new(Code::Value, format!("not a hub's answer: {what}"))
            .in_file(address(url))
            .hint("check HF_ENDPOINT; it must be a Hugging Face hub or a mirror of one")
    }

    fn refused(&self, url: &str, status: StatusCode, headers: &HeaderMap) -> Failure {
        let code = header(headers, "x-error-code").unwrap_or_default();
        let said = header(headers, "x-error-message").map(|m| format!(": {}", short(&m).escape_debug()));
        let e = |code, what: &str| {
            let text = format!("{what} (HTTP {}){}", status.as_u16(), said.clone().unwrap_or_default());
            Error::new(code, text).in_file(address(url))
        };
        let has_token = self.access.token.is_some();
        let again = |error| Failure { error, again: Some(wait(headers)) };
        match status.as_u16() {
            401 | 403 if code == "GatedRepo" || has_token => {
                let what = "the repository is gated or private, and the hub does not let this token in";
                let what = if has_token { what } else { "the repository is gated" };
                e(Code::Io, what)
                    .hint("accept the repository's terms on its page, and give a token of that account in HF_TOKEN")
                    .into()
            }
            401 | 403 => e(Code::Io, "there is no such repository, or it is private or gated")
                .hint("check the name; for a private or gated repository give a token in HF_TOKEN")
                .into(),
            404 => e(Code::Missing, "the hub has no such repository or file").hint("check OWNER/NAME").into(),
            429 => again(
                e(Code::Io, "the hub asks to wait").hint("try again later; a token in HF_TOKEN raises its limits"),
            ),
            408 | 500..=599 => again(e(Code::Io, "the hub cannot answer now").hint("try again later")),
            _ => e(Code::Io, "the hub refuses").hint("check the name and HF_ENDPOINT").into(),
        }
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// `Retry-After`, in seconds.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = header(headers, "retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// Where an answer leads, as a whole address.
fn redirect(answer: &Response<Body>, url: &str) -> Result<Option<String>> {
    if !answer.status().is_redirection() {
        return Ok(None);
    }
    let to = header(answer.headers(), "location").unwrap_or_default();
    let whole = match (origin(&to), origin(url)) {
        (Some(_), _) => to,
        (None, Some(base)) if to.starts_with('/') && !to.starts_with("//") => format!("{base}{to}"),
        _ => {
            let text = format!("it leads to {:?}", short(&to));
            return Err(Error::new(Code::Value, text).in_file(address(url)).hint("check HF_ENDPOINT"));
        }
    };
    if url.starts_with("https:") && !whole.starts_with("https:") {
        let text = format!("it leads away from https, to {:?}", short(&whole));
        return Err(Error::new(Code::Value, text).in_file(address(url)).hint("check HF_ENDPOINT"));
    }
    Ok(Some(whole))
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> Option<&str> {
    let host = ["https://", "http://"].iter().find(|s| url.starts_with(**s))?.len();
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |n| host + n);
    Some(&url[..end]).filter(|_| end > host)
}

/// An address for messages: without the query, which may be a signature.
fn address(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// A path with everything but letters, digits and `-._~/` as `%XX`.
fn encoded(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin("https://a.b:8/x/y?z"), Some("https://a.b:8"));
        assert_eq!(origin("http://a"), Some("http://a"));
        assert_eq!(origin("http://a?x"), Some("http://a"));
        for no in ["", "/x", "ftp://a", "https://", "https:///x"] {
            assert_eq!(origin(no), None, "{no}");
        }
        // What only begins like the hub is another host.
        assert_ne!(origin("https://huggingface.co.evil/x"), origin("https://huggingface.co/x"));
        assert_ne!(origin("https://huggingface.co@evil/x"), origin("https://huggingface.co/x"));
        assert_eq!(encoded("a b/ü-1.gguf"), "a%20b/%C3%BC-1.gguf");
    }
}

//! One error type for everything that reads or writes bytes.
//!
//! An [`Error`] says which rule broke ([`Code`], stable across releases), where (a file or
//! section name and, if known, a byte offset), the offending value, and what to do next.

use std::fmt;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Stable names of the rules a file can break. Printed as `E_...` in messages and JSON.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $name,)* }
        impl Code {
            /// The stable text form, e.g. `E_MAGIC`.
            pub const fn as_str(self) -> &'static str { match self { $(Self::$name => $text,)* } }
            /// Every code, for tests that check that each one is produced by a named case.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

codes! {
    /// The operating system refused an operation.
    Io = "E_IO",
    /// Not the kind of file that was expected.
    Magic = "E_MAGIC",
    /// A version this reader does not know.
    Version = "E_VERSION",
    /// The file ends before the structure does.
    Truncated = "E_TRUNCATED",
    /// A count, length or size exceeds its documented cap.
    Cap = "E_CAP",
    /// A value outside its allowed range or grammar.
    Value = "E_VALUE",
    /// Text that is not valid UTF-8 or not of the allowed alphabet.
    Text = "E_TEXT",
    /// A name that occurs twice.
    Duplicate = "E_DUPLICATE",
    /// Something required is absent.
    Missing = "E_MISSING",
    /// A tensor's shape is not the one its use demands.
    Shape = "E_SHAPE",
    /// A type id that is unknown or not allowed here.
    Type = "E_TYPE",
    /// Two ranges overlap, leave a hole, or lie outside the file.
    Layout = "E_LAYOUT",
    /// An offset that is not aligned as the format demands.
    Align = "E_ALIGN",
    /// A checksum or digest does not match: the bytes are damaged.
    Digest = "E_DIGEST",
    /// Bytes that must be zero are not.
    Reserved = "E_RESERVED",
    /// JSON that is valid but not in canonical form.
    NonCanonical = "E_NONCANON",
    /// A feature named in `requires` that this reader does not have.
    Requires = "E_REQUIRES",
    /// The base model is not the one this bundle was trained on.
    BaseMismatch = "E_BASE",
    /// Another process holds the write lock.
    Locked = "E_LOCKED",
    /// Not enough free space to finish.
    Space = "E_SPACE",
    /// A number that is not finite where it must be.
    NotFinite = "E_NOT_FINITE",
    /// The thing exists but cannot be used in this way.
    Unsupported = "E_UNSUPPORTED",
    /// A file was cut short, rewritten or became unreadable while it was in use.
    Changed = "E_CHANGED",
    /// An update continues another stage, or another file, than the one it is applied to.
    Parent = "E_PARENT",
    /// A stage that must not be returned to: below the floor, or tried and found bad.
    Rollback = "E_ROLLBACK",
    /// A signature that is missing, of another stage or file, or by a key that is not trusted.
    Signature = "E_SIGNATURE",
}

impl Code {
    /// The exit code a program ends with: 2 another kind of file or unsupported, 3 another base,
    /// 4 the system refused, else 1.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Magic | Self::Unsupported | Self::Version | Self::Requires => 2,
            Self::BaseMismatch => 3,
            Self::Io | Self::Space | Self::Locked => 4,
            _ => 1,
        }
    }

    /// What usually helps with an error of this kind.
    const fn remedy(self) -> &'static str {
        match self {
            Self::Io | Self::Space => "check the path, its permissions and the free space",
            Self::Magic => "give a file of the right kind",
            Self::Version | Self::Requires | Self::Unsupported => "use a newer conpet, or another file",
            Self::BaseMismatch => "give the base that the bundle names",
            Self::Locked => "wait for the other program to finish",
            Self::Changed => "nothing that was read from it is to be trusted; put the file back and start again",
            Self::Parent => "use the update that was made for this bundle's stage, or copy the whole new bundle",
            Self::Rollback => "use a newer stage",
            Self::Signature => "use a bundle or update that is signed by a trusted key",
            Self::Truncated => "the file is cut short; download or copy it again",
            Self::Duplicate | Self::Missing | Self::Value | Self::Text => {
                "correct the value named; in a file made by a program, the file is damaged: make or copy it again"
            }
            _ => "the file is damaged or not what it should be; restore it from a copy or make it again",
        }
    }
}

/// The beginning of a text from a file, short enough for a message.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(120).collect()
}

/// What went wrong, where, and what to do next.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: Code,
    message: String,
    place: Option<String>,
    section: Option<String>,
    offset: Option<u64>,
    hint: Option<String>,
    source: Option<std::io::Error>,
}

impl Error {
    /// A new error; `message` names the value that broke the rule.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            place: None,
            section: None,
            offset: None,
            hint: None,
            source: None,
        }))
    }

    /// An operating-system error met while doing `what` ("open", "sync", ...): `E_SPACE` if the disk or
    /// a quota is full, else `E_IO`.
    pub fn io(what: &str, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let code = if matches!(source.kind(), StorageFull | QuotaExceeded) { Code::Space } else { Code::Io };
        let mut e = Self::new(code, format!("cannot {what}: {source}"));
        e.0.source = Some(source);
        e
    }

    /// Names the file; kept if one is already named (the innermost knows best).
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<std::path::Path>) -> Self {
        if self.0.place.is_none() {
            self.0.place = Some(path.as_ref().display().to_string());
        }
        self
    }

    /// Names the part of the file, e.g. `manifest` or `tensor blk.0.attn_q.weight`.
    #[must_use]
    pub fn in_section(mut self, section: impl Into<String>) -> Self {
        if self.0.section.is_none() {
            self.0.section = Some(section.into());
        }
        self
    }

    /// Byte offset of the fault from the start of the file or section.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if self.0.hint.is_none() {
            self.0.hint = Some(hint.into());
        }
        self
    }

    /// The exit code every program of this project ends with on this error.
    pub fn exit_code(&self) -> u8 {
        self.0.code.exit_code()
    }

    /// Everything but the remedy, on one line: `FILE: SECTION: message [CODE at byte N]`.
    pub fn brief(&self) -> String {
        let i = &self.0;
        let mut out = String::new();
        for place in [&i.place, &i.section].into_iter().flatten() {
            out += &format!("{place}: ");
        }
        out += &format!("{} [{}", i.message, i.code.as_str());
        if let Some(at) = i.offset {
            out += &format!(" at byte {at}");
        }
        out + "]"
    }

    /// Which rule broke.
    pub fn code(&self) -> Code {
        self.0.code
    }
    /// The message without file, section, offset or hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }
    /// The file, if known.
    pub fn file(&self) -> Option<&str> {
        self.0.place.as_deref()
    }
    /// The part of the file, if known.
    pub fn section(&self) -> Option<&str> {
        self.0.section.as_deref()
    }
    /// The byte offset, if known.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }
    /// The remedy: the one given, or what usually helps with such an error.
    pub fn remedy(&self) -> &str {
        self.0.hint.as_deref().unwrap_or_else(|| self.0.code.remedy())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nhint: {}", self.brief(), self.remedy())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}

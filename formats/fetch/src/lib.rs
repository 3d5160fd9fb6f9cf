//! Fetches bases from a Hugging Face hub, or a mirror of it, into the cache that other programs of the hub share.
//!
//! A [`Name`] is what `-hf` takes: `OWNER/NAME[:QUANT]`. [`Hub::base`] finds the repository's GGUF files, downloads
//! those of the wanted quantization, and gives the path of the first. A download that is cut is resumed where it
//! ended, every file is compared with the checksum that the hub gives, and what is not whole never gets its name.
//!
//! Existing clients either need an asynchronous executor or do not compare checksums, so this one speaks the few
//! requests itself, on a small blocking HTTP library.
//!
//! ```no_run
//! use conpet_fetch::{Hub, Name};
//!
//! # fn main() -> conpet_formats::Result<()> {
//! let name: Name = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q8_0".parse()?;
//! let path = Hub::from_environment()?.base(&name, None, &mut |_| ())?;
//! println!("{}", path.display());
//! # Ok(())
//! # }
//! ```

mod access;
mod cache;
mod checksum;
mod choice;
mod client;
mod download;
mod hub;
mod name;

pub use download::Event;
pub use hub::Hub;
pub use name::Name;

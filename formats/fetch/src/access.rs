//! Where a hub is, and what is shown and granted to it.

use std::time::Duration;

/// A hub's address, the token that it alone gets to see, and the patience with it.
#[derive(Clone)]
pub(crate) struct Access {
    /// The address, without a slash at its end.
    pub(crate) endpoint: String,
    pub(crate) token: Option<String>,
    /// How long a server may send nothing.
    pub(crate) patience: Duration,
}

//! Replay of rows of earlier tasks: how many, which, and their trunk states.

pub mod choose;

use super::Services;
use crate::data::Prepared;
use crate::settings::automatic::Memory;
use crate::settings::range::{any, at_least_one};
use crate::settings::settings;
use choose::Way;
use conpet_formats::Result;
use std::sync::Arc;

settings! { "Replay (emr, ea-emr, crl, their static forms, and the conpet selector)" Settings Flags {
    /// Batches in an epoch of the mixtures of new and old rows, for the conpet selector and static methods (the
    /// step budget is epochs * 0.8 * this).
    replay_limit: u64 = 100, at_least_one();
    /// Training rows of each class that are kept; 0 keeps all, -1 is the method's own (all for static methods, 20 for others).
    memory: Memory = Memory::Own, any();
    /// Which rows are kept.
    select: Way = Way::Kmeans, any();
    /// emr, ea-emr: how often each kept row is seen in an epoch.
    memory_repeat: usize = 5, at_least_one();
}}

impl Services<'_> {
    /// Rows of an earlier task to replay: those with these indices, or all. Their trunk states are computed
    /// once per process.
    ///
    /// # Errors
    /// See [`Prepared::new`].
    pub fn replay(&mut self, t: usize, rows: Option<&[usize]>) -> Result<Arc<Prepared>> {
        if let Some(known) = self.replayed.get(&t) {
            return Ok(known.clone());
        }
        let data = Arc::new(self.prepare_replay(t, rows)?);
        self.replayed.insert(t, data.clone());
        Ok(data)
    }
}

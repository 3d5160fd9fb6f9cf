//! Tools

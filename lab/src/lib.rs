//! Real clusters, broken on purpose (`quorlock-lab chaos`) and measured (`quorlock-lab bench`). `cluster/chaos` and
//! `cluster/bench` build and run them.

#![forbid(unsafe_code)]
#![warn(clippy::pedantic)]
#![allow(clippy::missing_errors_doc, clippy::must_use_candidate, reason = "only programs of this package use it")]

pub mod bench;
pub mod chaos;
pub mod exit;
pub mod messages;
pub mod proxy;

#[cfg(doctest)] // Here, as one of its examples needs rslock.
#[doc = include_str!("../../docs/migration.md")]
mod migration {}

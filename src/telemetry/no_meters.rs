//! In place of `meters`, without the feature `metrics`.

use std::sync::Arc;
use std::time::Duration;

use super::event::{Event, LockName, Locks};
use super::extension::Extension;
use super::listeners::Listeners;

#[derive(Debug)]
pub(super) struct Meters;

#[expect(clippy::unused_self, reason = "as the methods with the feature")]
impl Meters {
    pub(super) fn new(_: &[Arc<str>], _: &Listeners) -> Self {
        Self
    }

    pub(super) fn request_begins(&self, _: Locks<'_>) {}

    pub(super) fn unusable_request(&self) {}

    pub(super) fn lease_begins(&self, _: LockName<'_>) {}

    pub(super) fn event(&self, _: &Event<'_>) {}

    pub(super) fn extension(&self, _: LockName<'_>, _: &Extension<'_>) {}

    pub(super) fn round_trip(&self, _: &Arc<str>, _: Duration) {}
}

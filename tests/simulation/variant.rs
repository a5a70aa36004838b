//! The choice of the broken variant of the client.

/// Breaks the client of this thread in the way of this name, or not at all when it is empty. Says whether that can be done:
/// not in this build, whose client is the shipped one, but in the copy that `breaks.rs` of the testkit makes.
pub fn choose(_variant: &'static str) -> bool {
    false
}

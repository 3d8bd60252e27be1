//! Whether the kernel's clock is synchronised: adjtimex(2), which has no safe wrapper.
#![allow(unsafe_code)]

/// `None` if the kernel does not say.
pub(super) fn synchronized() -> Option<bool> {
    // SAFETY: `timex` is a plain C struct for which all zeroes is a valid value; `modes` 0 makes the call read-only.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, exclusively borrowed `timex`, which the kernel fills in.
    let state = unsafe { libc::adjtimex(&mut timex) };
    (state >= 0).then_some(timex.status & libc::STA_UNSYNC == 0)
}

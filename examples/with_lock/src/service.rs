//! What a service manager is told, if it asked for it by `$NOTIFY_SOCKET`: see `sd_notify(3)`.

/// The variable by which it asks. The command doesn't get it: what it wrote there would be taken for ours.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// This program does its duty from now on, as holder or as standby.
pub(crate) fn ready() {
    #[cfg(target_os = "linux")]
    tell(sd_notify::NotifyState::Ready);
}

/// What it does at the moment, for `systemctl status`.
#[cfg_attr(
    not(target_os = "linux"),
    allow(unused_variables, reason = "only Linux has systemd")
)]
pub(crate) fn status(text: &str) {
    #[cfg(target_os = "linux")]
    tell(sd_notify::NotifyState::Status(text));
}

/// It is about to end.
pub(crate) fn stopping() {
    #[cfg(target_os = "linux")]
    tell(sd_notify::NotifyState::Stopping);
}

/// A manager that doesn't listen is no reason to fail.
#[cfg(target_os = "linux")]
fn tell(state: sd_notify::NotifyState<'_>) {
    let _ = sd_notify::notify(&[state]);
}

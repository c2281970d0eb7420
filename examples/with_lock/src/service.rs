//! Messages to a service manager, if it has set `$NOTIFY_SOCKET`: see `sd_notify(3)`.

/// The variable with the socket. The command doesn't get it, because its messages would count as ours.
pub(crate) const VARIABLE: &str = "NOTIFY_SOCKET";

/// This program is ready, as the holder or as a standby.
pub(crate) fn ready() {
    #[cfg(target_os = "linux")]
    tell(sd_notify::NotifyState::Ready);
}

/// The current state, for `systemctl status`.
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

/// A manager that doesn't listen is not a failure.
#[cfg(target_os = "linux")]
fn tell(state: sd_notify::NotifyState<'_>) {
    let _ = sd_notify::notify(&[state]);
}

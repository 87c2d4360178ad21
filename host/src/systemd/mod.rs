//! A service manager that has started this process, such as systemd: sd_notify(3) and
//! sd_listen_fds(3).

mod activation;
mod notify;

pub use activation::{inherit, take};
pub use notify::{Watchdog, ready, reloading, stopping, succeeded, took_over};

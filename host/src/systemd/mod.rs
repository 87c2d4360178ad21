//! A service manager that has started this process, such as systemd: sd_notify(3) and
//! sd_listen_fds(3).

mod activation;
mod notify;
mod store;

pub use activation::{find as stored, holds as is_stored, inherit, take};
pub use notify::{Watchdog, ready, reloading, stopping, succeeded, took_over};
pub use store::{has_room as store_has_room, put as store, remove as unstore};

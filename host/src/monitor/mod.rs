//! The QMP monitor: QEMU's docs/interop/qmp-spec.rst, so that its clients connect unchanged.

mod command;
mod error;
mod events;
mod framing;
mod listener;
mod server;
mod session;
#[cfg(test)]
mod tests;

pub use command::Command;
pub use error::{ErrorClass, QmpError};
pub use events::Events;
pub use listener::{MonitorAddress, MonitorError};
pub use server::{Control, Monitor};

/// A message as it is sent: one line, ASCII alone.
fn line(value: &serde_json::Value) -> String {
    use std::fmt::Write as _;
    let mut line = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
    }
    line.push_str("\r\n");
    line
}

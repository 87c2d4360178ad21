//! `tracing` in a plugin: a plugin has its own dispatcher, which this wires to the host's log.

use std::fmt::Write as _;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::host::Host;

/// Sends this library's `tracing` events and panic messages to the host; used by the export macro.
pub(crate) fn install(host: &Host) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let level = host.log_level();
        // Fails only when the plugin has set its own, which it may.
        let _ = tracing::subscriber::set_global_default(Forward {
            host: host.clone(),
            level,
        });
        let host = host.clone();
        std::panic::set_hook(Box::new(move |info| {
            host.log(1, "panic", &info.to_string().replace('\n', " "));
        }));
    });
}

struct Forward {
    host: Host,
    level: u32,
}

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(*metadata.level()) <= self.level
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let metadata = event.metadata();
        self.host
            .log(number(*metadata.level()), metadata.target(), line.0.trim());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// 1 (error) to 5 (trace), as the ABI has it.
fn number(level: Level) -> u32 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?} ")
        } else {
            write!(self.0, "{}={value:?} ", field.name())
        };
    }
}

//! The log, on standard error.

use tracing::level_filters::LevelFilter;

/// The environment variable with the level: `error`, `warn` (the default), `info`, `debug`, `trace`
/// or `off`.
const LEVEL: &str = "BATON_LOG";

/// Starts logging; once a process.
pub(crate) fn start() -> Result<(), String> {
    let level = match std::env::var(LEVEL) {
        Ok(text) => text.parse::<LevelFilter>().map_err(|_| {
            format!("{LEVEL}={text}: is not one of off, error, warn, info, debug and trace")
        })?,
        Err(_) => LevelFilter::WARN,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

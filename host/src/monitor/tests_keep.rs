//! Clients that stay connected while the monitor is detached and attached again.

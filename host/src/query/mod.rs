//! What the monitor's queries tell of the VM, in the shape that [`table`](crate::monitor::table) says.

mod block;
mod command_line;
mod machine;
mod pci;
mod qom;

pub use block::{block, named_nodes};
pub use command_line::options;
pub use machine::{
    cpus, current_machine, machines, memdev, memory_size, migration_threads, target, uuid,
};
pub use pci::pci;
pub use qom::{device_path, device_properties, get, list, type_properties, types};

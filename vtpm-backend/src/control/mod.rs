//! The control channel of the TPM emulator protocol, as QEMU, cloud-hypervisor and libvirt
//! speak it. Numbers and structures: QEMU, `backends/tpm/tpm_ioctl.h`.

mod courier;
mod handler;
mod request;
mod stream;

pub use courier::{Courier, NotCarried, Package, Trusting};
pub use handler::{Reply, Vrot, handle};
pub use request::{MAX_BLOB, Request, RequestError};
pub use stream::RequestStream;

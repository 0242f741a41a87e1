//! What happens when a mapped file cannot be read or written any more: the kernel sends SIGBUS.

use std::io;

/// Exit code of a process that met a mapped file whose bytes are gone: it was cut off, or the device failed.
pub const EXIT_BUS: i32 = 75;

/// From now on SIGBUS ends this process with a word and [`EXIT_BUS`], instead of in silence. There is nothing to go back
/// to: the instruction that met it cannot be finished.
///
/// # Errors
/// If the system does not take the handler.
pub fn explain_bus_errors() -> io::Result<()> {
    // SAFETY: the handler calls write and _exit only, which are async-signal-safe (POSIX.1-2017, 2.4.3).
    unsafe {
        signal_hook_registry::register(libc::SIGBUS, || {
            libc::write(libc::STDERR_FILENO, WORD.as_ptr().cast(), WORD.len());
            libc::_exit(EXIT_BUS);
        })
    }
    .map(|_| ())
}

const WORD: &str = "error: a mapped file of this node cannot be accessed any more (SIGBUS): it was cut off by somebody, or \
    its disk failed; the node stops. Nothing that was acknowledged depends on this process: check the disk and start \
    the node again\n";

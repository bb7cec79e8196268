//! Names of hosts and users in a statically linked program.
//!
//! The C library asks the sources that `/etc/nsswitch.conf` names. All but files and DNS are shared libraries, which
//! are of the C library of the machine: a statically linked program has another one in itself, and both in one process
//! may end it. [`set_up`] leaves the two sources that are linked in: `/etc/hosts`, `/etc/passwd` and `/etc/group`, and
//! DNS as `/etc/resolv.conf` has it. A dynamically linked program asks all sources.

/// Sets the sources. Must be called before threads are started.
pub fn set_up() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    linked_in::use_alone();
}

#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
mod linked_in {
    use std::ffi::{CStr, c_char, c_int};

    /// Databases that are looked up, and their sources.
    const SOURCES: [(&CStr, &CStr); 5] = [
        (c"hosts", c"files dns"),
        (c"services", c"files"),
        (c"passwd", c"files"),
        (c"group", c"files"),
        (c"initgroups", c"files"),
    ];

    #[allow(unsafe_code)]
    unsafe extern "C" {
        /// Of `nss.h`.
        fn __nss_configure_lookup(database: *const c_char, sources: *const c_char) -> c_int;
    }

    pub(super) fn use_alone() {
        for (database, sources) in SOURCES {
            // SAFETY: both are strings that end with a NUL, and are only read. There are no other threads yet. It fails
            // for a database that it does not know, which is not looked up then.
            #[allow(unsafe_code)]
            unsafe {
                __nss_configure_lookup(database.as_ptr(), sources.as_ptr());
            }
        }
    }
}

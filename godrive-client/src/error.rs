//! The one place where a fault becomes an errno.

use godrive_proto::meta::NameError;
use godrive_proto::{Code, Fault};

/// What an operation of the file system fails with: the errno for the caller, and why, for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("errno {errno}: {context}")]
pub struct FsError {
    pub errno: i32,
    pub context: String,
}

pub type Result<T> = std::result::Result<T, FsError>;

impl FsError {
    pub fn new(errno: i32, context: impl Into<String>) -> Self {
        Self { errno, context: context.into() }
    }

    /// An errno that needs no sentence.
    pub fn bare(errno: i32) -> Self {
        Self { errno, context: String::new() }
    }
}

/// The errno of a code. Whatever the peers say of themselves, not of the file, is EIO: the caller can do nothing about it.
pub fn errno(code: Code) -> i32 {
    match code {
        Code::NotFound => libc::ENOENT,
        Code::Exists => libc::EEXIST,
        Code::NotDirectory => libc::ENOTDIR,
        Code::IsDirectory => libc::EISDIR,
        Code::NotEmpty => libc::ENOTEMPTY,
        Code::Invalid => libc::EINVAL,
        Code::NameTooLong => libc::ENAMETOOLONG,
        Code::TooManyLinks => libc::EMLINK,
        Code::NotPermitted => libc::EPERM,
        Code::AccessDenied | Code::Forbidden => libc::EACCES,
        Code::CrossDevice => libc::EXDEV,
        Code::Stale => libc::ESTALE,
        Code::NoAttribute => libc::ENODATA,
        Code::TooBig => libc::E2BIG,
        Code::Range => libc::ERANGE,
        Code::FileTooLarge => libc::EFBIG,
        Code::Loop => libc::ELOOP,
        Code::Busy => libc::EBUSY,
        Code::NotSupported => libc::EOPNOTSUPP,
        Code::NoSpace => libc::ENOSPC,
        Code::Deadlock => libc::EDEADLK,
        Code::NoLocks => libc::ENOLCK,
        Code::Unavailable
        | Code::Quarantined
        | Code::SessionLost
        | Code::NoLease
        | Code::WrongEpoch
        | Code::WrongVersion
        | Code::Corrupt
        | Code::NoChunk
        | Code::NoSource
        | Code::MemberFailed
        | Code::Disk
        | Code::Malformed
        | Code::WrongTerm
        | Code::NotReady
        | Code::Timeout
        | Code::Unreachable
        | Code::Internal => libc::EIO,
    }
}

impl From<Fault> for FsError {
    fn from(fault: Fault) -> Self {
        Self { errno: errno(fault.code), context: fault.to_string() }
    }
}

impl From<NameError> for FsError {
    fn from(error: NameError) -> Self {
        let errno = match error {
            NameError::TooLong => libc::ENAMETOOLONG,
            NameError::Invalid => libc::EINVAL,
        };
        Self::new(errno, error.to_string())
    }
}

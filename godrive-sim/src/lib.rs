pub mod clock;
pub mod oracle;
pub mod stamp;
pub mod trace;

//! One pair of types per operation, tied to a wire code and to the roles that may ask for it.

use serde::{Serialize, de::DeserializeOwned};
use std::fmt;

/// Who a certificate says its bearer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Role {
    Master,
    Slave,
    Client,
    /// May administer the cluster (`godrive` on a machine that holds the admin certificate).
    Admin,
    /// No certificate yet: may only ask to join, with a token.
    Joiner,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Master, Self::Slave, Self::Client, Self::Admin, Self::Joiner];

    /// The word in certificates.
    pub fn word(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
            Self::Client => "client",
            Self::Admin => "admin",
            Self::Joiner => "joiner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A request, its reply, its code on the wire and who may send it. Payload bytes travel beside both.
pub trait Operation {
    type Request: Serialize + DeserializeOwned + Send + Sync + fmt::Debug + 'static;
    type Reply: Serialize + DeserializeOwned + Send + Sync + fmt::Debug + 'static;
    const CODE: u16;
    const NAME: &'static str;
    const ROLES: &'static [Role];
}

/// Declares operations: `code Name(Request) -> Reply [Roles]`, and `NAMES`, the table of the module's codes.
macro_rules! operations {
    ($($(#[$doc:meta])* $code:literal $name:ident($request:ty) -> $reply:ty [$($role:ident),+];)+) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $name;
            impl $crate::operation::Operation for $name {
                type Request = $request;
                type Reply = $reply;
                const CODE: u16 = $code;
                const NAME: &'static str = stringify!($name);
                const ROLES: &'static [$crate::operation::Role] = &[$($crate::operation::Role::$role),+];
            }
        )+
        /// Code and name of every operation here, for logs and for the test that no code is used twice.
        pub const NAMES: &[(u16, &str)] = &[$(($code, stringify!($name))),+];
    };
}
pub(crate) use operations;

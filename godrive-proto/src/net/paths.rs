//! When a change of the machine's network calls for a new socket. Pure.
//!
//! What counts is the address from which datagrams to a peer leave. As long as it stays, others may come and go: a
//! machine that starts containers all day gets and loses addresses and links that no connection uses. While there is no
//! route, nothing is done either; the moment is when there is one again.

use std::net::IpAddr;

/// The way to one peer.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The address that was used so far; None: there was no route yet.
    pub used: Option<IpAddr>,
    /// There was no route the last time somebody looked.
    pub cut_off: bool,
    /// The address that would be used now; None: there is no route.
    pub now: Option<IpAddr>,
    /// A connection is open on which nothing was heard for longer than its keep-alives allow.
    pub silent: bool,
}

/// Connections move to a new socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub from: Option<IpAddr>,
    pub to: IpAddr,
}

/// The first of the paths that calls for it decides.
pub fn decide(paths: impl IntoIterator<Item = Path>) -> Option<Move> {
    paths.into_iter().find_map(|path| {
        let to = path.now.filter(|address| !address.is_loopback())?;
        let due = path.used != Some(to) || path.cut_off || path.silent;
        due.then_some(Move { from: path.used, to })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIFI: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 7));
    const LTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 64, 0, 2));
    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const STEADY: Path = Path { used: Some(WIFI), cut_off: false, now: Some(WIFI), silent: false };

    #[test]
    fn what_no_connection_uses_may_come_and_go() {
        assert_eq!(decide([]), None);
        assert_eq!(decide([STEADY, STEADY]), None);
    }

    #[test]
    fn another_address_on_the_way_to_one_peer_moves_all() {
        let moved = Path { now: Some(LTE), ..STEADY };
        assert_eq!(decide([STEADY, moved]), Some(Move { from: Some(WIFI), to: LTE }));
    }

    #[test]
    fn without_a_route_it_waits_until_there_is_one_be_it_the_old() {
        let gone = Path { now: None, ..STEADY };
        assert_eq!(decide([gone, Path { cut_off: true, ..gone }]), None);
        let back = Path { cut_off: true, ..STEADY };
        assert_eq!(decide([back]), Some(Move { from: Some(WIFI), to: WIFI }));
        let first = Path { used: None, cut_off: true, now: Some(LTE), silent: false };
        assert_eq!(decide([first]), Some(Move { from: None, to: LTE }));
    }

    #[test]
    fn a_flap_of_the_link_moves_what_has_fallen_silent() {
        let silent = Path { silent: true, ..STEADY };
        assert_eq!(decide([silent]), Some(Move { from: Some(WIFI), to: WIFI }));
    }

    #[test]
    fn on_loopback_nothing_ever_moves() {
        let here = Path { used: Some(LOOPBACK), cut_off: false, now: Some(LOOPBACK), silent: false };
        for path in [here, Path { cut_off: true, ..here }, Path { silent: true, ..here }] {
            assert_eq!(decide([path]), None);
        }
    }
}

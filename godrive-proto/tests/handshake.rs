//! Who is let in and who is not, and that the refusal says why.

mod support;

use godrive_proto::admin::{Join, Joined, Ping};
use godrive_proto::frame::ReplyHeader;
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::machine;
use godrive_proto::net::token::{JoinToken, join, sha256};
use godrive_proto::net::{Endpoint, Expect, Options};
use godrive_proto::{ClusterId, Code, Fault, NodeId, Role};
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use support::{SHORT, any, authority, endpoint, endpoint_with, identity, now_s};
use tokio::time::timeout;

/// A refusal is a `Forbidden` whose sentence names the cause, and the server goes on serving.
async fn refused(server: &Endpoint, caller: &Identity, expect: Expect, cause: &str) {
    let caller = endpoint(caller);
    let fault = caller.connect(server.local_address(), expect).await.unwrap_err();
    assert_eq!(fault.code, Code::Forbidden, "{fault}");
    assert!(fault.detail.contains(cause), "expected {cause:?} in: {fault}");
}

async fn still_serves(server: &Endpoint, authority: &Authority) {
    let caller = endpoint(&identity(authority, Role::Client, 77));
    let connecting = caller.connect(server.local_address(), any(Role::Slave));
    // Peers that found the server to be another than they wanted were let in before they left.
    let accepting =
        async { while server.accept().await.expect("the endpoint is open").peer().node != NodeId(77) {} };
    let (connected, accepted) = tokio::join!(connecting, timeout(SHORT, accepting));
    assert_eq!(connected.unwrap().peer().node, NodeId(2));
    accepted.expect("the caller was not accepted");
}

#[tokio::test]
async fn peers_are_known_by_their_certificates() {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    still_serves(&server, &authority).await;
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let (ours, theirs) = (authority(1), authority(2));
    let server = endpoint(&identity(&ours, Role::Slave, 2));
    refused(&server, &identity(&theirs, Role::Client, 3), any(Role::Slave), "another cluster").await;
    // The same cluster id from another CA is no better.
    refused(&server, &identity(&authority(1), Role::Client, 3), any(Role::Slave), "").await;
    still_serves(&server, &ours).await;
}

#[tokio::test]
async fn a_client_of_another_cluster_that_trusts_ours_is_refused_by_the_server() {
    let (ours, theirs) = (authority(1), authority(2));
    let server = endpoint(&identity(&ours, Role::Slave, 2));
    let mut forged = identity(&theirs, Role::Client, 3);
    (forged.ca, forged.cluster) = (ours.ca().to_vec(), ours.cluster());
    refused(&server, &forged, any(Role::Slave), "another cluster").await;
    still_serves(&server, &ours).await;
}

#[tokio::test]
async fn the_wrong_role_and_the_wrong_node_are_refused() {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    let client = identity(&authority, Role::Client, 3);
    refused(&server, &client, any(Role::Master), "master").await;
    let other = Expect { role: Role::Slave, node: Some(NodeId(9)) };
    refused(&server, &client, other, "not 00000000000000000000000000000009").await;
    still_serves(&server, &authority).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    let old = authority.issue(Role::Client, NodeId(3), now_s() - 400 * 24 * 3600).unwrap();
    refused(&server, &old, any(Role::Slave), "expired").await;
}

/// Connects with quinn and rustls alone: without a certificate, or with another ALPN.
async fn bare(
    server: SocketAddr,
    ours: &Authority,
    alpn: &[u8],
    own: Option<Identity>,
) -> Result<(), String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ours.ca().to_vec())).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => config
            .with_client_auth_cert(vec![own.certificate.into()], PrivatePkcs8KeyDer::from(own.key).into())
            .unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let quinn = quinn::Endpoint::new_with_abstract_socket(
        quinn::EndpointConfig::default(),
        None,
        machine::sockets().bind("127.0.0.1:0".parse().unwrap()).unwrap(),
        Arc::new(quinn::TokioRuntime),
    )
    .unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let connecting = quinn.connect_with(config, server, "slave.godrive").unwrap();
    let connection = connecting.await.map_err(|error| error.to_string())?;
    connection.accept_uni().await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn no_certificate_and_another_version_are_refused() {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    let address = server.local_address();
    let current = godrive_proto::version::ALPN;
    let none = bare(address, &authority, current, None).await.unwrap_err();
    assert!(none.contains("116") || none.contains("ertificate"), "{none}");
    let own = identity(&authority, Role::Client, 3);
    let other = bare(address, &authority, b"godrive/0", Some(own.clone())).await.unwrap_err();
    assert!(other.contains("120") || other.contains("application protocol"), "{other}");
    // The same by hand with the right version works, so the refusals above were for their own reasons.
    bare(address, &authority, current, Some(own)).await.unwrap();
    assert!(timeout(SHORT, server.accept()).await.unwrap().is_some());
    still_serves(&server, &authority).await;
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for len in (0..1400).step_by(7) {
        let garbage: Vec<u8> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        socket.send_to(&garbage, server.local_address()).await.unwrap();
        // The beginning of a QUIC version 1 Initial, then garbage.
        let initial = [&[0xc3, 0, 0, 0, 1, 8], garbage.as_slice()].concat();
        socket.send_to(&initial, server.local_address()).await.unwrap();
    }
    still_serves(&server, &authority).await;
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable() {
    let authority = authority(1);
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let caller = endpoint(&identity(&authority, Role::Client, 3));
    let fault = caller.connect(silent.local_addr().unwrap(), any(Role::Slave)).await.unwrap_err();
    assert_eq!(fault.code, Code::Unreachable, "{fault}");
}

fn joiners() -> Options {
    Options { accept_joiners: true, ..Options::default() }
}

#[tokio::test]
async fn a_token_leads_to_an_identity() {
    let authority = authority(1);
    let master = endpoint_with(&identity(&authority, Role::Master, 1), &joiners());
    let token = JoinToken {
        master: master.local_address(),
        ca_hash: sha256(authority.ca()),
        id: 5,
        secret: *b"sixteen secrets!",
    };
    let pasted: JoinToken = token.to_string().parse().unwrap();
    let serving = async {
        let connection = master.accept().await.unwrap();
        assert_eq!(connection.peer().role, Role::Joiner);
        let incoming = connection.accept().await.unwrap();
        assert_eq!(incoming.decode::<Ping>().unwrap_err().code, Code::Internal);
        let request = incoming.decode::<Join>().unwrap();
        assert_eq!((request.token_id, request.secret.as_slice()), (5, b"sixteen secrets!".as_slice()));
        let certificate =
            authority.sign(&request.certificate_request, request.role, NodeId(8), now_s()).unwrap();
        let ca = authority.ca().to_vec();
        let joined = Joined { cluster: ClusterId(1), node: NodeId(8), certificate, ca };
        incoming.reply::<Join>(ReplyHeader::default(), &joined, &[]).await.unwrap();
        connection.closed().await;
    };
    let sockets = machine::sockets();
    let (identity, ()) = tokio::join!(join(&sockets, &pasted, Role::Slave), serving);
    let identity = identity.unwrap();
    assert_eq!((identity.cluster, identity.role, identity.node), (ClusterId(1), Role::Slave, NodeId(8)));

    // The identity works: the new slave is known to the master by its certificate.
    let slave = endpoint(&identity);
    let (connected, accepted) =
        tokio::join!(slave.connect(master.local_address(), any(Role::Master)), master.accept());
    connected.unwrap();
    assert_eq!(
        (accepted.as_ref().unwrap().peer().role, accepted.unwrap().peer().node),
        (Role::Slave, NodeId(8))
    );
}

#[tokio::test]
async fn a_joiner_may_only_join() {
    let authority = authority(1);
    let master = endpoint_with(&identity(&authority, Role::Master, 1), &joiners());
    let token =
        JoinToken { master: master.local_address(), ca_hash: sha256(authority.ca()), id: 5, secret: [0; 16] };
    let serving = async {
        let connection = master.accept().await.unwrap();
        let incoming = connection.accept().await.unwrap();
        // Whatever a joiner sends, its role is checked against each operation's.
        assert!(!<Ping as godrive_proto::Operation>::ROLES.contains(&connection.peer().role));
        incoming
            .fail(ReplyHeader::default(), Fault::new(Code::Forbidden, "the token has expired"))
            .await
            .unwrap();
        connection.closed().await;
    };
    let sockets = machine::sockets();
    let (identity, ()) = tokio::join!(join(&sockets, &token, Role::Client), serving);
    let fault = identity.unwrap_err();
    assert_eq!((fault.code, fault.detail.as_str()), (Code::Forbidden, "the token has expired"));
}

#[tokio::test]
async fn a_token_of_another_cluster_sends_no_secret() {
    let (ours, theirs) = (authority(1), authority(2));
    let master = endpoint_with(&identity(&ours, Role::Master, 1), &joiners());
    let token =
        JoinToken { master: master.local_address(), ca_hash: sha256(theirs.ca()), id: 5, secret: [0; 16] };
    let fault = join(&machine::sockets(), &token, Role::Client).await.unwrap_err();
    assert_eq!(fault.code, Code::Forbidden, "{fault}");
    assert!(fault.detail.contains("another cluster"), "{fault}");
}

#[tokio::test]
async fn joiners_are_accepted_only_where_joining_is() {
    let authority = authority(1);
    let master = endpoint(&identity(&authority, Role::Master, 1));
    let token =
        JoinToken { master: master.local_address(), ca_hash: sha256(authority.ca()), id: 5, secret: [0; 16] };
    let fault = join(&machine::sockets(), &token, Role::Client).await.unwrap_err();
    assert_eq!(fault.code, Code::Forbidden, "{fault}");
    assert!(fault.detail.contains("certificate"), "{fault}");
}

#[tokio::test]
async fn a_malformed_frame_ends_only_its_own_connection() {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    let own = identity(&authority, Role::Client, 3);
    for garbage in [vec![0xff; 8], vec![4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], vec![9, 0, 0, 0, 1]] {
        let offender = offend(server.local_address(), &authority, own.clone(), &garbage);
        let serving = async {
            let connection = server.accept().await.unwrap();
            assert!(connection.accept().await.is_none());
            connection.closed().await
        };
        let (told, closed) = tokio::join!(offender, timeout(SHORT, serving));
        closed.expect("the malformed frame was not noticed");
        assert!(!told.is_empty());
    }
    still_serves(&server, &authority).await;
}

/// Sends raw bytes on a stream and returns what the server says when it closes.
async fn offend(server: SocketAddr, ours: &Authority, own: Identity, bytes: &[u8]) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ours.ca().to_vec())).unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own.certificate.into()], PrivatePkcs8KeyDer::from(own.key).into())
            .unwrap();
    config.alpn_protocols = vec![godrive_proto::version::ALPN.to_vec()];
    let quinn = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let connection = quinn.connect_with(config, server, "slave.godrive").unwrap().await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    connection.closed().await.to_string()
}

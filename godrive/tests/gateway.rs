//! The gateway over real TLS, with a client of a few lines, against a real cluster.
#![allow(clippy::disallowed_methods, reason = "these tests work on the real machine")]

mod common;

use common::{Cluster, eventually, noise};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

struct Gateway {
    child: Child,
    address: SocketAddr,
    token: String,
    tls: Arc<rustls::ClientConfig>,
}

struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Gateway {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut child = cluster
            .command("gateway", &[&["--listen", "127.0.0.1:0"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(cluster.path("gateway.log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on https://").unwrap_or_else(|| {
            panic!("{line:?}: {}", std::fs::read_to_string(cluster.path("gateway.log")).unwrap())
        });
        let folder = cluster.dir().join("gateway");
        let ca = CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let tls =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let token = std::fs::read_to_string(folder.join("token")).unwrap().trim().to_owned();
        Self { address: address.parse().unwrap(), child, token, tls: Arc::new(tls) }
    }

    fn connect(&self) -> Tls {
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        rustls::StreamOwned::new(rustls::ClientConnection::new(self.tls.clone(), name).unwrap(), tcp)
    }

    fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Authorization") {
            head += &format!("Authorization: Bearer {}\r\n", self.token);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_send(method, path, headers, body).expect("a head")
    }

    /// None: the connection was cut before the answer.
    fn try_send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Reply> {
        let mut stream = self.connect();
        let head = self.head(method, path, headers) + &format!("Content-Length: {}\r\n\r\n", body.len());
        // A server that refuses early closes before it has read everything.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        try_read_reply(&mut stream)
    }

    fn try_get(&self, path: &str, headers: &[(&str, &str)]) -> Option<Reply> {
        self.try_send("GET", path, headers, b"")
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.send("GET", path, headers, b"")
    }

    fn names(&self, path: &str) -> Vec<String> {
        let listed = self.get(&format!("{path}?list"), &[]).json();
        listed["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// SIGTERM; the exit code.
    fn stop(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_reply(stream: &mut Tls) -> Reply {
    try_read_reply(stream).expect("a head")
}

fn try_read_reply(stream: &mut Tls) -> Option<Reply> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            // A server that cuts the connection ends the reply, too.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            Err(error) => panic!("{error}"),
        }
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Some(Reply { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() })
}

#[test]
fn files_over_https() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB"]);
    let gateway = Gateway::start(&cluster, &[]);
    only_the_token_opens(&gateway);
    stores_and_fetches(&gateway);
    answers_conditions(&gateway);
    lists_and_removes(&gateway);
    refuses_nonsense(&gateway);
    a_broken_upload_leaves_nothing(&gateway);
    assert_eq!(gateway.stop(), Some(0));
    // What it stored is there for others.
    assert!(cluster.must("ls", &["/dir/sub"]).contains("file"));
}

fn only_the_token_opens(gateway: &Gateway) {
    for wrong in ["", "Bearer wrong", "Basic x"] {
        let reply = gateway.get("/", &[("Authorization", wrong)]);
        assert_eq!(reply.status, 401, "{wrong}");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
    }
}

fn stores_and_fetches(gateway: &Gateway) {
    let bytes = noise(1, 3_333_333);
    let stored = gateway.send("PUT", "/dir/sub/file%20one", &[], &bytes);
    assert_eq!(stored.status, 201, "{}", String::from_utf8_lossy(&stored.body));
    assert_eq!(stored.json()["size"], 3_333_333);
    let all = gateway.get("/dir/sub/file%20one", &[]);
    assert_eq!((all.status, all.headers["content-length"].as_str()), (200, "3333333"));
    assert!(all.body == bytes, "the file differs");
    assert_eq!(all.headers["accept-ranges"], "bytes");
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=1048570-1048590", 1_048_570..1_048_591),
        ("bytes=-5", 3_333_328..3_333_333),
    ] {
        let part = gateway.get("/dir/sub/file%20one", &[("Range", range)]);
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(
            part.headers["content-range"],
            format!("bytes {}-{}/3333333", expected.start, expected.end - 1)
        );
        assert!(part.body == bytes[expected], "{range} differs");
    }
    let behind = gateway.get("/dir/sub/file%20one", &[("Range", "bytes=3333333-")]);
    assert_eq!((behind.status, behind.headers["content-range"].as_str()), (416, "bytes */3333333"));
    let replaced = gateway.send("PUT", "/dir/sub/file%20one", &[], b"short");
    assert_eq!(replaced.status, 200);
    assert_eq!(gateway.get("/dir/sub/file%20one", &[]).body, b"short");
    let kept = gateway.send("PUT", "/dir/sub/file%20one", &[("If-None-Match", "*")], b"other");
    assert_eq!(kept.status, 412);
    assert_eq!(gateway.send("PUT", "/empty", &[], b"").status, 201);
    assert_eq!(gateway.get("/empty", &[]).body, b"");
}

fn answers_conditions(gateway: &Gateway) {
    let head = gateway.send("HEAD", "/dir/sub/file%20one", &[], b"");
    assert_eq!((head.status, head.headers["content-length"].as_str()), (200, "5"));
    assert!(head.body.is_empty());
    let tag = head.headers["etag"].as_str();
    assert_eq!(gateway.get("/dir/sub/file%20one", &[("If-None-Match", tag)]).status, 304);
    let date = head.headers["last-modified"].as_str();
    assert_eq!(gateway.get("/dir/sub/file%20one", &[("If-Modified-Since", date)]).status, 304);
    let stale = gateway.get("/dir/sub/file%20one", &[("If-Range", "\"old\""), ("Range", "bytes=0-0")]);
    assert_eq!((stale.status, stale.body.as_slice()), (200, b"short".as_slice()));
    gateway.send("PUT", "/dir/sub/file%20one", &[], b"SHORT");
    assert_eq!(gateway.get("/dir/sub/file%20one", &[("If-None-Match", tag)]).status, 200);
}

fn lists_and_removes(gateway: &Gateway) {
    let listed = gateway.get("/dir/sub?list", &[]).json();
    assert_eq!(listed["entries"][0]["name"], "file one", "{listed}");
    assert_eq!(listed["entries"][0]["href"], "/dir/sub/file%20one", "{listed}");
    for number in 0..5 {
        assert_eq!(gateway.send("PUT", &format!("/many/{number}"), &[], b"x").status, 201);
    }
    let (mut names, mut after) = (Vec::new(), 0);
    loop {
        let page = gateway.get(&format!("/many?list&limit=2&after={after}"), &[]).json();
        let entries = page["entries"].as_array().unwrap();
        assert!(entries.len() <= 2, "{page}");
        names.extend(entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()));
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    names.sort();
    assert_eq!(names, ["0", "1", "2", "3", "4"]);
    assert_eq!(gateway.send("DELETE", "/many", &[], b"").status, 409);
    for number in 0..5 {
        assert_eq!(gateway.send("DELETE", &format!("/many/{number}"), &[], b"").status, 204);
    }
    assert_eq!(gateway.send("DELETE", "/many", &[], b"").status, 204);
    assert_eq!(gateway.send("DELETE", "/many", &[], b"").status, 404);
    assert_eq!(gateway.get("/many?list", &[]).status, 404);
}

fn refuses_nonsense(gateway: &Gateway) {
    for (method, path, status) in [
        ("GET", "/a/../dir", 400),
        ("GET", "/%2e%2e/etc/passwd", 400),
        ("GET", "/a%2fb", 400),
        ("GET", "/a%zz", 400),
        ("GET", "/none", 404),
        ("GET", "/dir", 409),
        ("GET", "/dir?what", 400),
        ("GET", "/empty?list", 409),
        ("GET", "/empty/below", 409),
        ("PUT", "/dir", 409),
        ("PUT", "/", 400),
        ("PUT", "/new/", 400),
        ("PUT", "/empty/below", 409),
        ("DELETE", "/", 409),
        ("POST", "/dir", 405),
    ] {
        let reply = gateway.send(method, path, &[], b"");
        assert_eq!(reply.status, status, "{method} {path}: {}", String::from_utf8_lossy(&reply.body));
        assert_eq!(reply.json()["status"], status, "{method} {path}");
    }
    // It answers and closes before it has read everything: then TCP may drop the answer on its way.
    let long = "x".repeat(200_000);
    eventually("the answer to too long a head", || match gateway.try_get("/", &[("X-Long", &long)]) {
        Some(reply) => reply.status == 431,
        None => false,
    });
}

fn a_broken_upload_leaves_nothing(gateway: &Gateway) {
    let before = gateway.names("/");
    let mut stream = gateway.connect();
    let head = gateway.head("PUT", "/broken", &[]) + "Content-Length: 9000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&noise(2, 4_000_000)).unwrap();
    eventually("the upload has begun", || {
        gateway.names("/").iter().any(|name| name.starts_with(".broken.upload-"))
    });
    drop(stream);
    eventually("nothing is left of the broken upload", || gateway.names("/") == before);
}

#[test]
fn too_many_requests_are_sent_away_and_the_end_waits_for_those_under_way() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB"]);
    let gateway = Gateway::start(&cluster, &["--max-requests", "1"]);
    let bytes = noise(3, 2_000_000);
    let mut stream = gateway.connect();
    let head = gateway.head("PUT", "/slow", &[]) + &format!("Content-Length: {}\r\n\r\n", bytes.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&bytes[..1_000_000]).unwrap();
    eventually("the only permit is taken", || gateway.get("/?list", &[]).status == 503);
    let reply = gateway.get("/", &[]);
    assert_eq!(reply.headers["retry-after"], "1");
    // While it stops, the upload goes on.
    let stopping = std::thread::spawn(move || gateway.stop());
    stream.write_all(&bytes[1_000_000..]).unwrap();
    assert_eq!(read_reply(&mut stream).status, 201);
    assert_eq!(stopping.join().unwrap(), Some(0));
    assert!(cluster.run("get", &["/slow", "-"]).stdout == bytes, "the file differs");
}

#[test]
fn without_enough_replicas_an_upload_is_refused() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB"]);
    let gateway = Gateway::start(&cluster, &["--deadline", "5s"]);
    cluster.kill("slave-1");
    cluster.kill("slave-2");
    let reply = gateway.send("PUT", "/file", &[], &noise(4, 2_000_000));
    assert_eq!(reply.status, 503, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(gateway.names("/"), Vec::<String>::new());
    assert_eq!(gateway.stop(), Some(0));
}

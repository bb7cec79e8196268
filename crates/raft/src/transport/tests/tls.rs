//! TLS between members: which connections are accepted, and how mistakes in files are reported.

use super::super::grpc::{GrpcConfig, GrpcTransport, TlsConfig, TlsError};
use super::grpc::{ANY, send_until, transport};
use super::*;

/// Who signs certificates.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        Authority { issuer, pem }
    }

    /// For a node that is reached by this name or number.
    fn node(&self, name: &str) -> TlsConfig {
        self.sign(rcgen::CertificateParams::new([name.to_owned()]).unwrap())
    }

    fn sign(&self, params: rcgen::CertificateParams) -> TlsConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        TlsConfig {
            ca: self.pem.clone().into(),
            certificate: certificate.pem().into(),
            key: key.serialize_pem().into(),
            server_name: None,
        }
    }
}

fn try_with(tls: TlsConfig, secret: Option<&str>) -> std::io::Result<GrpcTransport> {
    let config = GrpcConfig {
        secret: secret.map(str::to_owned),
        tls: Some(tls),
        ..GrpcConfig::default()
    };
    GrpcTransport::bind(ANY, config)
}

fn with(tls: TlsConfig) -> GrpcTransport {
    try_with(tls, None).unwrap()
}

/// Sends to a node for a while, on both streams; nothing arrives.
#[track_caller]
fn speak_in_vain(one: &GrpcTransport, said: &Heard, node: u64) {
    let before = said.unreachable.lock().len();
    wait_for("it is refused, again and again", || {
        one.send(numbered(node, 1));
        one.send_bulk(chunk(node, 10), None);
        std::thread::sleep(Duration::from_millis(5));
        said.unreachable.lock().len() >= before + 4
    });
}

#[test]
fn with_certificates_of_one_authority_messages_and_large_chunks_arrive() {
    let authority = Authority::new();
    let (one, two, three) = (
        with(authority.node("127.0.0.1")),
        with(authority.node("127.0.0.1")),
        with(authority.node("127.0.0.1")),
    );
    let _hears = started(&one);
    let heard = started(&two);
    one.set_peer(NodeId(2), two.address().to_string());
    send_until(&heard, &one, 2);
    let back = Arc::new(Mutex::new(0));
    for _ in 0..8 {
        let permit: Permit = Box::new(Counted(back.clone()));
        one.send_bulk(chunk(2, 4 * 1024 * 1024), Some(permit));
    }
    wait_for("large chunks", || {
        let messages = heard.messages.lock();
        let large = |m: &&Envelope| match &m.payload {
            Payload::Chunk(chunk) => chunk.bytes.len() == 4 * 1024 * 1024,
            _ => false,
        };
        messages.iter().filter(large).count() == 8
    });
    wait_for("all permits", || *back.lock() == 8);

    let heard = started(&three);
    one.set_peer(NodeId(3), format!("https://{}", three.address()));
    send_until(&heard, &one, 3);
}

#[test]
fn without_a_certificate_of_the_authority_no_message_is_sent_or_accepted() {
    let authority = Authority::new();
    let (one, two) = (
        with(authority.node("127.0.0.1")),
        with(authority.node("127.0.0.1")),
    );
    let heard_one = started(&one);
    let heard_two = started(&two);
    one.set_peer(NodeId(2), two.address().to_string());
    send_until(&heard_two, &one, 2);

    let plain = transport(None);
    // This one trusts the others. They do not know who has signed for it.
    let mut foreign = Authority::new().node("127.0.0.1");
    foreign.ca.extend(authority.pem.as_bytes());
    let foreign = with(foreign);
    for (stranger, node) in [(&plain, 3), (&foreign, 4)] {
        let heard = started(stranger);
        stranger.set_peer(NodeId(2), two.address().to_string());
        speak_in_vain(stranger, &heard, 2);
        one.set_peer(NodeId(node), stranger.address().to_string());
        speak_in_vain(&one, &heard_one, node);
        assert!(heard.messages.lock().is_empty(), "nothing is said to it");
    }
    let messages = std::mem::take(&mut *heard_two.messages.lock());
    let of_one = messages.iter().all(|m| *m == numbered(2, 9));
    assert!(of_one, "{messages:?}");
    send_until(&heard_two, &one, 2);
}

#[test]
fn a_node_that_shows_the_certificate_of_another_name_is_not_spoken_to() {
    let authority = Authority::new();
    let one = with(authority.node("127.0.0.1"));
    let two = with(authority.node("two.example"));
    let heard_one = started(&one);
    let heard_two = started(&two);
    one.set_peer(NodeId(2), two.address().to_string());
    speak_in_vain(&one, &heard_one, 2);
    assert!(heard_two.messages.lock().is_empty());

    // Unless that is the name that is expected, wherever the node is.
    let mut tls = authority.node("three.example");
    tls.server_name = Some("two.example".to_owned());
    let three = with(tls);
    let _hears = started(&three);
    three.set_peer(NodeId(2), two.address().to_string());
    send_until(&heard_two, &three, 2);
}

#[test]
fn an_address_turns_tls_neither_off_nor_on() {
    let authority = Authority::new();
    let one = with(authority.node("127.0.0.1"));
    let heard_one = started(&one);
    let plain = transport(None);
    let heard = started(&plain);
    one.set_peer(NodeId(2), format!("http://{}", plain.address()));
    speak_in_vain(&one, &heard_one, 2);
    assert!(heard.messages.lock().is_empty());
    plain.set_peer(NodeId(1), format!("https://{}", one.address()));
    speak_in_vain(&plain, &heard, 1);
    assert!(heard_one.messages.lock().is_empty());
}

#[test]
fn a_certificate_does_not_stand_in_for_the_secret() {
    let authority = Authority::new();
    let knowing = |secret| try_with(authority.node("127.0.0.1"), Some(secret)).unwrap();
    let (one, two, other) = (knowing("sesame"), knowing("sesame"), knowing("simsim"));
    let _hears = started(&one);
    let heard_two = started(&two);
    let heard_other = started(&other);
    other.set_peer(NodeId(2), two.address().to_string());
    speak_in_vain(&other, &heard_other, 2);
    assert!(heard_two.messages.lock().is_empty());
    one.set_peer(NodeId(2), two.address().to_string());
    send_until(&heard_two, &one, 2);
}

#[test]
fn silent_connections_of_strangers_delay_no_member() {
    let authority = Authority::new();
    let (one, two) = (
        with(authority.node("127.0.0.1")),
        with(authority.node("127.0.0.1")),
    );
    let _hears = started(&one);
    let heard = started(&two);
    let silent: Vec<_> = (0..32)
        .map(|_| std::net::TcpStream::connect(two.address()).unwrap())
        .collect();
    one.set_peer(NodeId(2), two.address().to_string());
    send_until(&heard, &one, 2);
    drop(silent);
}

#[test]
fn mistakes_in_certificates_are_reported_when_the_transport_is_created() {
    let (authority, other) = (Authority::new(), Authority::new());
    let refusal = |change: &dyn Fn(&mut TlsConfig)| {
        let mut tls = authority.node("127.0.0.1");
        change(&mut tls);
        let error = try_with(tls, None).err().expect("it is refused");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        let inside = error.get_ref().unwrap();
        inside.downcast_ref::<TlsError>().unwrap().clone()
    };
    let broken = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let hollow = b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    for pem in [&b""[..], b"hello", broken, hollow] {
        let error = refusal(&|tls| tls.ca = pem.to_vec());
        assert!(matches!(error, TlsError::Ca(_)), "{error}");
        let error = refusal(&|tls| tls.certificate = pem.to_vec());
        assert!(matches!(error, TlsError::Certificate(_)), "{error}");
        let error = refusal(&|tls| tls.key = pem.to_vec());
        assert!(matches!(error, TlsError::Key(_)), "{error}");
    }
    let swapped = refusal(&|tls| tls.key = tls.certificate.clone());
    assert_eq!(
        swapped.to_string(),
        "TLS, the key of this node's certificate (key): there is no key in it"
    );
    let of_another = refusal(&|tls| tls.key = authority.node("127.0.0.1").key);
    assert!(matches!(of_another, TlsError::Key(_)), "{of_another}");
    // Of an authority that the others do not know; and one that is over.
    let unknown = refusal(&|tls| tls.ca = other.pem.clone().into());
    assert!(matches!(unknown, TlsError::Certificate(_)), "{unknown}");
    let over = refusal(&|tls| {
        let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        *tls = authority.sign(params);
    });
    assert!(over.to_string().contains("would refuse it"), "{over}");
    let name = refusal(&|tls| tls.server_name = Some("no name".to_owned()));
    assert_eq!(name, TlsError::ServerName("no name".to_owned()));
}

#[test]
fn new_certificates_are_used_for_new_connections_and_bad_ones_change_nothing() {
    let (before, after) = (Authority::new(), Authority::new());
    let one = with(before.node("127.0.0.1"));
    let two = with(before.node("127.0.0.1"));
    let three = with(after.node("127.0.0.1"));
    let _hears = started(&one);
    let heard_two = started(&two);
    let heard_three = started(&three);
    one.set_peer(NodeId(2), two.address().to_string());
    send_until(&heard_two, &one, 2);
    three.set_peer(NodeId(2), two.address().to_string());
    speak_in_vain(&three, &heard_three, 2);

    let mut bad = after.node("127.0.0.1");
    bad.key = after.node("127.0.0.1").key;
    assert!(matches!(two.set_tls(&bad), Err(TlsError::Key(_))));
    speak_in_vain(&three, &heard_three, 2);
    two.set_tls(&after.node("127.0.0.1")).unwrap();
    heard_two.messages.lock().clear();
    send_until(&heard_two, &three, 2);
    // The connection of before stays.
    heard_two.messages.lock().clear();
    send_until(&heard_two, &one, 2);
    // What it connects to from now on gets the new one.
    two.set_peer(NodeId(3), three.address().to_string());
    send_until(&heard_three, &two, 3);
}

#[test]
fn a_node_whose_certificate_has_expired_since_its_start_is_not_heard() {
    use std::io::{Read as _, Write as _};

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

    let authority = Authority::new();
    let two = with(authority.node("127.0.0.1"));
    let _hears = started(&two);
    // What the node answers to the beginning of a connection with this certificate.
    let answer = |tls: TlsConfig| -> std::io::Result<usize> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(&tls.ca).unwrap();
        roots.add(ca).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&tls.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&tls.key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut socket = std::net::TcpStream::connect(two.address()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
        stream.read(&mut [0; 9])
    };
    assert_eq!(answer(authority.node("127.0.0.1")).unwrap(), 9);
    let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let refused = answer(authority.sign(params)).unwrap_err();
    assert!(
        refused.to_string().contains("CertificateExpired"),
        "{refused}"
    );
}

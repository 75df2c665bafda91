//! Who a peer is, and how the connection to it behaves.

use std::{any::Any, sync::Arc, time::Duration};

use quinn_proto::{
    AckFrequencyConfig, ClientConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt, congestion,
    crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig},
};
use rustls::{CipherSuite, crypto::CryptoProvider, pki_types::CertificateDer};

use crate::table::NodeId;

/// Protocol name in the handshake. Changes when the meaning of datagrams or streams does.
const ALPN: &[u8] = b"rswarm-overlay/1";
/// UDP payload assumed until the path is probed, in bytes: an Ethernet link under IPv6 carries it, and an inner packet
/// of 1400 bytes fits. A smaller path is noticed as a black hole and left for 1200.
const INITIAL_MTU: u16 = 1452;
/// A connection this long without a packet is given up; suspicion comes far earlier.
const IDLE: Duration = Duration::from_secs(30);
/// QUIC says something this often, however much is sealed without it: else a busy connection would seem idle to it, and
/// its measurements of the path would grow old.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Assumed round trip before the first is measured: a lost handshake packet is sent again after three of these.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Unacknowledged bytes in flight. The inner flows have their own congestion control, and a second one under them
/// halves the throughput at 0.5 % loss; beyond `u32::MAX` pacing is off, too.
const WINDOW: u64 = 1 << 33;

/// Tells which node a certificate belongs to.
pub trait Identity: Send + Sync + 'static {
    /// The node named by `chain`, leaf first, whose signatures TLS has verified already.
    fn node_of(&self, chain: &[CertificateDer<'_>]) -> Option<NodeId>;
}

impl<F: Fn(&[CertificateDer<'_>]) -> Option<NodeId> + Send + Sync + 'static> Identity for F {
    fn node_of(&self, chain: &[CertificateDer<'_>]) -> Option<NodeId> {
        self(chain)
    }
}

/// The provider to build the overlay's TLS configurations with: *ring*, its fastest cipher first.
pub fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// The caller's TLS configurations, made fit for the overlay.
pub(super) fn configs(
    server: &rustls::ServerConfig,
    client: &rustls::ClientConfig,
) -> Result<(Arc<ServerConfig>, ClientConfig), NoInitialCipherSuite> {
    let transport = Arc::new(transport());
    let mut server = server.clone();
    server.alpn_protocols = vec![ALPN.to_vec()];
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    server.transport_config(transport.clone()).migration(false);
    let mut client = client.clone();
    client.alpn_protocols = vec![ALPN.to_vec()];
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    client.transport_config(transport);
    Ok((Arc::new(server), client))
}

/// The chain the peer has shown, as `node_of` understands it.
pub(super) fn node_of(identity: &dyn Identity, shown: Option<Box<dyn Any>>) -> Option<NodeId> {
    let chain = shown?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    identity.node_of(&chain)
}

fn transport() -> TransportConfig {
    let mut ack = AckFrequencyConfig::default();
    ack.ack_eliciting_threshold(VarInt::from_u32(100)).max_ack_delay(Some(Duration::from_millis(10)));
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(INITIAL_MTU)
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).expect("30 s fit")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .ack_frequency_config(Some(ack))
        .datagram_receive_buffer_size(Some(16 << 20))
        .datagram_send_buffer_size(4 << 20)
        .max_concurrent_bidi_streams(VarInt::from_u32(4096))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(512 << 10))
        .receive_window(VarInt::from_u32(512 << 20))
        .send_window(64 << 20)
        .congestion_controller_factory(Arc::new(FixedWindow));
    transport
}

/// No congestion control: a window that never closes.
#[derive(Debug, Clone)]
struct FixedWindow;

impl congestion::Controller for FixedWindow {
    fn on_congestion_event(&mut self, _: std::time::Instant, _: std::time::Instant, _: bool, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        WINDOW
    }

    fn clone_box(&self) -> Box<dyn congestion::Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl congestion::ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _: std::time::Instant, _: u16) -> Box<dyn congestion::Controller> {
        Box::new(Self)
    }
}

//! What nodes and relays say to each other: whatever is understood can be said again in the same
//! sense, and within the bounds of a message.

use macula_core::mesh::packet::{self, Packet};
use macula_core::relay::between::{Between, MAX_PROOFS};
use macula_core::relay::message::{MAX_MESSAGE, MAX_REALM, MAX_SEALED, MAX_TOKEN, ToNode, ToRelay};

pub fn to_relay(message: &[u8]) {
    let Ok(Some(read)) = ToRelay::decode(message) else { return };
    match &read {
        ToRelay::Attach { realm, token, .. } => {
            assert!(realm.len() <= MAX_REALM && token.len() <= MAX_TOKEN);
        }
        ToRelay::Claim { sealed, .. } => assert!(sealed.len() <= MAX_SEALED),
        _ => {}
    }
    let said = read.encode();
    assert!(said.len() <= 2 + MAX_MESSAGE && said.len() <= 2 + message.len());
    assert_eq!(ToRelay::decode(&said[2..]), Ok(Some(read)));
}

pub fn to_node(message: &[u8]) {
    let Ok(Some(read)) = ToNode::decode(message) else { return };
    if let ToNode::Entry { sealed, .. } = &read {
        assert!(sealed.len() <= MAX_SEALED);
    }
    let said = read.encode();
    assert!(said.len() <= 2 + MAX_MESSAGE && said.len() <= 2 + message.len());
    assert_eq!(ToNode::decode(&said[2..]), Ok(Some(read)));
}

pub fn between(message: &[u8]) {
    let Ok(Some(read)) = Between::decode(message) else { return };
    match &read {
        Between::Proofs(proofs) => assert!(proofs.len() <= MAX_PROOFS),
        Between::Announce(said) => {
            assert!(said.realm.len() <= MAX_REALM && said.sealed.len() <= MAX_SEALED);
        }
        _ => {}
    }
    let said = read.encode();
    assert!(said.len() <= 2 + MAX_MESSAGE && said.len() <= 2 + message.len());
    assert_eq!(Between::decode(&said[2..]), Ok(Some(read)));
}

pub fn packet(datagram: &[u8]) {
    let said = match Packet::decode(datagram) {
        Some(Packet::Data { to, from, sealed }) => {
            [&packet::header(&to, &from)[..], sealed].concat()
        }
        Some(Packet::Nobody(tag)) => packet::nobody(&tag).to_vec(),
        None => return,
    };
    assert_eq!(said, datagram);
}

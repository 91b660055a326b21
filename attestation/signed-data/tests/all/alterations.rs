//! No byte can be changed, and none left out.

use attestation::fixture::now;
use signed_data::SignedData;

use crate::scene::{Scene, Signer};

fn accepted(scene: &Scene, bytes: &[u8]) -> bool {
    SignedData::from_cbor(bytes)
        .is_ok_and(|data| data.verify(None, &scene.anchors(), now()).is_ok())
}

#[test]
fn no_changed_byte_of_signed_data_goes_unseen() {
    let scene = Scene::new();
    let bytes = scene.attached().to_cbor();
    assert!(accepted(&scene, &bytes));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x01;
        assert!(!accepted(&scene, &changed), "byte {at}");
    }
}

#[test]
fn signed_data_that_were_cut_off_or_go_on_are_refused() {
    let scene = Scene::new();
    let bytes = scene.attached().to_cbor();
    for length in 0..bytes.len() {
        assert!(SignedData::from_cbor(&bytes[..length]).is_err(), "{length}");
    }
    assert!(SignedData::from_cbor(&[bytes.as_slice(), &[0]].concat()).is_err());
}

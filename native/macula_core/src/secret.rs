//! Bytes that let somebody in.

use std::fmt;
use std::ops::Deref;

use zeroize::Zeroizing;

/// A secret: wiped from memory when dropped, and never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::ZeroizeOnDrop;

    #[test]
    fn a_secret_is_wiped_and_does_not_show() {
        fn wiped(_: &impl ZeroizeOnDrop) {}
        let secret = Secret::from(b"sesame".to_vec());
        wiped(&secret.0);
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_eq!(&*secret, b"sesame");
    }
}

//! Reading the messages of our own protocols off a stream: each has its length in front.

use quinn::{ReadExactError, RecvStream};

/// Why there is no message.
pub(crate) enum NoMessage {
    /// It claims to have this many bytes, which no message has.
    TooLong(usize),
    /// The stream ended.
    Ended,
    /// The connection ended.
    Lost(String),
}

/// The next message, of at most `max` bytes, without its length.
pub(crate) async fn read(receive: &mut RecvStream, max: usize) -> Result<Vec<u8>, NoMessage> {
    let mut len = [0; 2];
    receive.read_exact(&mut len).await.map_err(ended)?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > max {
        return Err(NoMessage::TooLong(len));
    }
    let mut message = vec![0; len];
    receive.read_exact(&mut message).await.map_err(ended)?;
    Ok(message)
}

fn ended(error: ReadExactError) -> NoMessage {
    match error {
        ReadExactError::FinishedEarly(_) => NoMessage::Ended,
        ReadExactError::ReadError(error) => NoMessage::Lost(error.to_string()),
    }
}

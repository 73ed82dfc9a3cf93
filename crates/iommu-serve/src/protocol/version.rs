//! Version negotiation: the first exchange on a connection.

use serde::{Deserialize, Serialize};

use super::{Command, DATA_MAX, DMA_MAPS_MAX, FDS_MAX, Refusal};

/// Major version of the protocol: another one is another protocol.
pub const VERSION_MAJOR: u16 = 0;
/// Newest minor version that this server speaks.
pub const VERSION_MINOR: u16 = 1;

/// Most bytes of the JSON text that a peer may send.
const TEXT_MAX: usize = 4096;

/// Limits of one side, where it names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// File descriptors that it takes in one message; 1 if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u64>,
    /// Bytes of data that it takes in one message; 1 MiB if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u64>,
    /// DMA windows at a time; 65535 if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u64>,
    /// Page sizes of DMA windows, one bit each; 4 KiB if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// Whether it understands several writes in one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Text {
    #[serde(default)]
    capabilities: Capabilities,
}

/// A version message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Limits of the sender.
    pub capabilities: Capabilities,
}

impl Version {
    /// Reads the payload of a version message.
    ///
    /// # Errors
    /// [`Refusal`] for a text that is too long, not terminated, or not the JSON that the protocol has.
    pub fn parse(payload: &[u8]) -> Result<Self, Refusal> {
        let refuse = |why: &str| Refusal::invalid(Command::VERSION, why);
        let [a0, a1, i0, i1, text @ ..] = payload else {
            return Err(refuse("a version message has at least 4 bytes"));
        };
        if text.len() > TEXT_MAX {
            return Err(refuse("the capabilities are longer than 4096 bytes"));
        }
        let capabilities = match text {
            [] | [0] => Capabilities::default(),
            [json @ .., 0] => {
                serde_json::from_slice::<Text>(json)
                    .map_err(|why| refuse(&format!("the capabilities are not what the protocol has: {why}")))?
                    .capabilities
            }
            _ => return Err(refuse("the capabilities do not end with a NUL")),
        };
        Ok(Self {
            major: u16::from_le_bytes([*a0, *a1]),
            minor: u16::from_le_bytes([*i0, *i1]),
            capabilities,
        })
    }

    /// What this server answers to `self`: the same major version, the lower of the minor ones, its own limits, and of
    /// the optional features those that both have.
    ///
    /// # Errors
    /// [`Refusal`] for another major version.
    pub fn answer(self) -> Result<Self, Refusal> {
        if self.major != VERSION_MAJOR {
            return Err(Refusal::invalid(
                Command::VERSION,
                format!(
                    "protocol version {}.x is not spoken here, only {VERSION_MAJOR}.x",
                    self.major
                ),
            ));
        }
        let number = |value: usize| u64::try_from(value).ok();
        Ok(Self {
            major: VERSION_MAJOR,
            minor: self.minor.min(VERSION_MINOR),
            capabilities: Capabilities {
                max_msg_fds: number(FDS_MAX),
                max_data_xfer_size: Some(DATA_MAX.into()),
                max_dma_maps: number(DMA_MAPS_MAX),
                pgsizes: Some(4096),
                write_multiple: self.capabilities.write_multiple.filter(|theirs| *theirs),
            },
        })
    }

    /// Bytes of data that its sender takes in one message, as far as this server uses them.
    ///
    /// # Errors
    /// [`Refusal`] for a sender that takes none: its memory could not be reached by messages.
    pub fn data_max(&self) -> Result<usize, Refusal> {
        let theirs = self.capabilities.max_data_xfer_size.unwrap_or(DATA_MAX.into());
        match usize::try_from(theirs.min(DATA_MAX.into())) {
            Ok(0) | Err(_) => Err(Refusal::invalid(
                Command::VERSION,
                "max_data_xfer_size has to be 1 at least",
            )),
            Ok(most) => Ok(most),
        }
    }

    /// The payload of the message.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.major.to_le_bytes());
        bytes.extend(self.minor.to_le_bytes());
        let text = Text {
            capabilities: self.capabilities,
        };
        // Numbers and booleans always have a JSON form.
        bytes.extend(serde_json::to_vec(&text).unwrap_or_default());
        bytes.push(0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Vec<u8> {
        let mut bytes = vec![0, 0, 1, 0];
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes
    }

    #[test]
    fn a_client_that_asks_for_batches_gets_them_and_no_other_does() {
        let asks = Version::parse(&message(r#"{"capabilities":{"write_multiple":true,"max_msg_fds":8}}"#)).unwrap();
        assert_eq!(asks.capabilities.max_msg_fds, Some(8));
        assert_eq!(asks.answer().unwrap().capabilities.write_multiple, Some(true));
        let silent = Version::parse(&message("{}")).unwrap();
        assert_eq!(silent.answer().unwrap().capabilities.write_multiple, None);
        assert_eq!(silent.answer().unwrap().minor, 1);
        let again = Version::parse(&silent.answer().unwrap().to_bytes()).unwrap();
        assert_eq!(again, silent.answer().unwrap());
    }

    #[test]
    fn a_client_is_sent_no_more_data_at_a_time_than_it_takes() {
        let limit = |text: &str| Version::parse(&message(text)).unwrap().data_max();
        assert_eq!(limit("{}").unwrap(), 1 << 20);
        assert_eq!(limit(r#"{"capabilities":{"max_data_xfer_size":512}}"#).unwrap(), 512);
        assert_eq!(
            limit(r#"{"capabilities":{"max_data_xfer_size":2097152}}"#).unwrap(),
            1 << 20
        );
        assert!(limit(r#"{"capabilities":{"max_data_xfer_size":0}}"#).is_err());
    }

    #[test]
    fn unknown_capabilities_are_passed_over_and_wrong_ones_refused() {
        let known = Version::parse(&message(r#"{"capabilities":{"migration":{"pgsize":4096}}}"#));
        assert!(known.is_ok());
        for wrong in [
            message(r#"{"capabilities":{"max_msg_fds":"many"}}"#),
            message("not json"),
            vec![0, 0, 1, 0, b'{', b'}'],
            vec![0, 0, 1],
            message(&" ".repeat(5000)),
        ] {
            assert!(Version::parse(&wrong).is_err());
        }
    }

    #[test]
    fn another_major_version_is_refused() {
        let newer = Version {
            major: 1,
            minor: 0,
            capabilities: Capabilities::default(),
        };
        assert!(newer.answer().is_err());
    }
}
